package signature

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/textproto"
	"slices"
	"time"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// Secret is one of a webhook's secrets, in the open.
type Secret struct {
	Kind webhook.SecretKind
	Text string
}

// Signer makes the signatures that a webhook asks for. It is immutable, and safe
// for concurrent use. A nil Signer cannot sign.
type Signer struct {
	keys [][]byte // of SchemeStandard; as many as there are symmetric secrets
	more *more    // nil: SchemeStandard alone, as almost everywhere
}

// more is what signing by other schemes takes.
type more struct {
	schemes  []webhook.Scheme
	texts    [][]byte             // of the schemes that use the text; nil if there is none
	ed25519  []ed25519.PrivateKey // of SchemeStandardEd25519
	template *Template            // of SchemeTemplate
}

// NewSigner makes a signer of a webhook's schemes, its template (nil without
// SchemeTemplate), and its secrets that are valid, newest first. Schemes and kinds
// of secrets that it does not know are passed over: a newer release may have
// stored them.
func NewSigner(schemes []webhook.Scheme, template *webhook.SignatureTemplate, secrets []Secret) (*Signer, error) {
	s := &Signer{}
	if !slices.Equal(schemes, []webhook.Scheme{webhook.SchemeStandard}) {
		var err error
		if s.more, err = newMore(schemes, template); err != nil {
			return nil, err
		}
	}
	for _, secret := range secrets {
		if err := s.add(secret); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func newMore(schemes []webhook.Scheme, template *webhook.SignatureTemplate) (*more, error) {
	m := &more{}
	for _, scheme := range schemes {
		if slices.Contains(webhook.Schemes(), scheme) {
			m.schemes = append(m.schemes, scheme)
		}
	}
	if !slices.Contains(m.schemes, webhook.SchemeTemplate) {
		return m, nil
	}
	if template == nil {
		return nil, errors.New("sign by a template: there is none")
	}
	var err error
	m.template, err = NewTemplate(template)
	return m, err
}

// add takes a secret in. Its error repeats nothing of it.
func (s *Signer) add(secret Secret) error {
	var key []byte
	switch secret.Kind {
	case webhook.SecretEd25519:
		if s.more == nil {
			return nil
		}
		private, err := ParsePrivateKey(secret.Text)
		if err != nil {
			return fmt.Errorf("parse a private key: it %w", err)
		}
		s.more.ed25519 = append(s.more.ed25519, private)
		return nil
	case webhook.SecretSymmetric:
		var err error
		if key, err = ParseSecret(secret.Text); err != nil {
			return fmt.Errorf("parse a secret: it %w", err)
		}
	case webhook.SecretText:
		key = []byte(secret.Text)
	default:
		return nil
	}
	s.keys = append(s.keys, key)
	if s.more != nil && slices.ContainsFunc(s.more.schemes, webhook.Scheme.UsesText) {
		s.more.texts = append(s.more.texts, []byte(secret.Text))
	}
	return nil
}

// CanSign reports whether there is a valid secret for each of the schemes. A
// request must not be sent otherwise.
func (s *Signer) CanSign() bool {
	switch {
	case s == nil:
		return false
	case s.more == nil:
		return len(s.keys) > 0
	}
	for _, scheme := range s.more.schemes {
		if scheme == webhook.SchemeStandardEd25519 {
			if len(s.more.ed25519) == 0 {
				return false
			}
		} else if len(s.keys) == 0 {
			return false
		}
	}
	return len(s.more.schemes) > 0
}

// Sign hands the headers of all signatures to set, each once, with names in
// canonical spelling, but for a template's, which is in lower case. Those of
// Standard Webhooks are of all valid secrets, newest first, and so are Stripe's;
// GitHub's, which has room for one, is of the oldest. CanSign must have said that
// it can.
func (s *Signer) Sign(id string, timestamp time.Time, body []byte, set func(name, value string)) {
	if s.more == nil {
		set(headerSignature, Sign(s.keys, id, timestamp, body))
		return
	}
	if standard := s.standard(id, timestamp, body); standard != "" {
		set(headerSignature, standard)
	}
	for _, scheme := range s.more.schemes {
		switch scheme {
		case webhook.SchemeGitHub:
			set(webhook.HeaderGitHubSignature, SignGitHub(s.more.texts[len(s.more.texts)-1], body))
		case webhook.SchemeStripe:
			set(webhook.HeaderStripeSignature, SignStripe(s.more.texts, timestamp, body))
		case webhook.SchemeTemplate:
			set(s.more.template.Header(), s.more.template.Sign(s.more.texts, id, timestamp, body))
		}
	}
}

// standard is the value of the header that v1 and v1a share; empty if neither is
// asked for.
func (s *Signer) standard(id string, timestamp time.Time, body []byte) string {
	var out []byte
	if slices.Contains(s.more.schemes, webhook.SchemeStandard) {
		out = appendStandard(out, s.keys, id, timestamp, body)
	}
	if slices.Contains(s.more.schemes, webhook.SchemeStandardEd25519) {
		out = appendEd25519(out, s.more.ed25519, id, timestamp, body)
	}
	return string(out)
}

// Size is roughly how many bytes the signer takes.
func (s *Signer) Size() int {
	if s == nil {
		return 0
	}
	size := 32
	for _, key := range s.keys {
		size += 24 + len(key)
	}
	if s.more == nil {
		return size
	}
	size += 128 + 16*len(s.more.schemes) + len(s.more.ed25519)*(24+ed25519.PrivateKeySize)
	for _, text := range s.more.texts {
		size += 24 + len(text)
	}
	if s.more.template != nil {
		size += 512
	}
	return size
}

// headerSignature is HeaderSignature as net/http spells it.
var headerSignature = textproto.CanonicalMIMEHeaderKey(HeaderSignature)
