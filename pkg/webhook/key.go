package webhook

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Scope is what an API key may be used for.
type Scope string

// The closed set of scopes.
const (
	ScopeSubmit Scope = "submit" // submit events
	ScopeRead   Scope = "read"   // see webhooks, events, attempts and instances
	ScopeManage Scope = "manage" // change webhooks and event types, see webhooks' secrets
	ScopeAdmin  Scope = "admin"  // everything, API keys included
)

// Scopes lists the closed set.
func Scopes() []Scope { return []Scope{ScopeSubmit, ScopeRead, ScopeManage, ScopeAdmin} }

// KeyHash is the SHA-256 of an API key's text: what Fairhook knows of it.
type KeyHash [sha256.Size]byte

// String is the hash in hex, as notifications have it.
func (h KeyHash) String() string { return hex.EncodeToString(h[:]) }

// ParseKeyHash is the inverse of KeyHash.String.
func ParseKeyHash(text string) (hash KeyHash, err error) {
	if len(text) != hex.EncodedLen(len(hash)) {
		return KeyHash{}, fmt.Errorf("%d characters are not the hash of a key", len(text))
	}
	if _, err := hex.Decode(hash[:], []byte(text)); err != nil {
		return KeyHash{}, fmt.Errorf("not the hash of a key: %w", err)
	}
	return hash, nil
}

// The text of an API key: a prefix by which scanners for leaked secrets can tell
// it, and 32 random bytes in base64url.
const (
	keyPrefix     = "fhk_"
	keyBytes      = 32
	keyHintLength = len(keyPrefix) + 6
)

// NewKeyText makes the text of a new API key.
func NewKeyText() Secret {
	var random [keyBytes]byte
	// crypto/rand.Read never fails (Go 1.24 and later crash the program instead).
	_, _ = rand.Read(random[:])
	return NewSecret(keyPrefix + base64.RawURLEncoding.EncodeToString(random[:]))
}

// HashKeyText returns the hash by which the key with this text is found. ok is
// false for a text that NewKeyText cannot have made.
func HashKeyText(text string) (hash KeyHash, ok bool) {
	encoded, prefixed := strings.CutPrefix(text, keyPrefix)
	if !prefixed || len(encoded) != base64.RawURLEncoding.EncodedLen(keyBytes) {
		return KeyHash{}, false
	}
	var raw [keyBytes]byte
	// The decoder would skip line breaks.
	if n, err := base64.RawURLEncoding.Strict().Decode(raw[:], []byte(encoded)); err != nil || n != keyBytes {
		return KeyHash{}, false
	}
	return sha256.Sum256([]byte(text)), true
}

// KeyHint is the beginning of a key's text, for people to tell keys apart: 36 of
// its 256 random bits.
func KeyHint(text Secret) string { return text.Reveal()[:keyHintLength] }

// Key is an API key without what makes it one: its text is shown once, when it
// is made, and not kept.
type Key struct {
	ID          ID     `json:"id"`
	Hint        string `json:"hint"`
	Description string `json:"description"`
	// Tenant is whose things the key is for; nil: everybody's.
	Tenant *string `json:"tenant"`
	Scopes []Scope `json:"scopes"`
	// AllowedCIDRs are the networks from which the key may be used; empty: all.
	AllowedCIDRs []string `json:"allowed_cidrs"`
	// RequireSignature says that what is submitted with the key must be signed as
	// Standard Webhooks 1.0.0 describes.
	RequireSignature bool       `json:"require_signature"`
	CreatedAt        time.Time  `json:"created_at"`
	ExpiresAt        *time.Time `json:"expires_at"`   // nil: never
	RevokedAt        *time.Time `json:"revoked_at"`   // nil: not
	LastUsedAt       *time.Time `json:"last_used_at"` // to the minute; nil: never
}

// Check returns everything wrong with a key that is to be made now, by JSON
// Pointer.
func (k *Key) Check(now time.Time) []FieldError {
	var faults []FieldError
	fault := func(pointer, detail string) {
		if detail != "" {
			faults = append(faults, FieldError{Pointer: pointer, Detail: detail})
		}
	}
	fault("/description", checkFreeText(k.Description, MaxDescriptionLength))
	if k.Tenant != nil {
		fault("/tenant", CheckTenant(*k.Tenant))
		if *k.Tenant == OperatorTenant {
			fault("/tenant", "is reserved: the operators' webhooks are for keys for all tenants")
		}
	}
	if len(k.Scopes) == 0 {
		fault("/scopes", "must have at least one entry")
	}
	for i, scope := range k.Scopes {
		switch {
		case i >= len(Scopes()):
			fault("/scopes", fmt.Sprintf("must have at most %d entries", len(Scopes())))
			return faults
		case !slices.Contains(Scopes(), scope):
			fault(fmt.Sprintf("/scopes/%d", i), `must be "submit", "read", "manage" or "admin"`)
		case slices.Contains(k.Scopes[:i], scope):
			fault(fmt.Sprintf("/scopes/%d", i), "is there twice")
		}
	}
	faults = append(faults, CheckCIDRs("/allowed_cidrs", k.AllowedCIDRs)...)
	if k.ExpiresAt != nil && !k.ExpiresAt.After(now) {
		fault("/expires_at", "must be in the future")
	}
	return faults
}

// Principal is who makes a request, and what they may do.
type Principal struct {
	KeyID  ID      // zero: the key of the configuration
	Tenant *string // nil: all
	Scopes []Scope
	// ExpiresAt and Networks are the bounds of the key, which those that it makes
	// must keep within: nil: no end, and everywhere.
	ExpiresAt *time.Time
	Networks  []netip.Prefix
}

// Nobody is a principal that may do nothing.
func Nobody() Principal { return Principal{Tenant: new(string)} }

// May reports whether the principal has a scope, by itself or as admin.
func (p *Principal) May(scope Scope) bool {
	return slices.Contains(p.Scopes, scope) || slices.Contains(p.Scopes, ScopeAdmin)
}

// Covers reports whether a tenant's things are the principal's business. To one
// that they are not, they do not exist.
func (p *Principal) Covers(tenant string) bool { return p.Tenant == nil || *p.Tenant == tenant }

// Exceeds returns in what a key would be for more than the principal that wants
// to make it, as a sentence, or an empty string: nobody can give away what they
// do not have.
func (p *Principal) Exceeds(k *Key) string {
	switch {
	case p.Tenant != nil && (k.Tenant == nil || *k.Tenant != *p.Tenant):
		return "The API key is for one tenant, and makes keys for that tenant alone."
	case p.ExpiresAt != nil && (k.ExpiresAt == nil || k.ExpiresAt.After(*p.ExpiresAt)):
		return "The API key expires, and makes no keys that outlive it."
	case len(p.Networks) > 0 && !withinNetworks(p.Networks, k.AllowedCIDRs):
		return "The API key is for some networks, and makes no keys for others."
	}
	return ""
}

// withinNetworks reports whether each of a key's networks is a part of one of
// outer.
func withinNetworks(outer []netip.Prefix, cidrs []string) bool {
	inner, err := ParseCIDRs(cidrs)
	if err != nil || len(inner) == 0 {
		return false
	}
	for _, network := range inner {
		if !slices.ContainsFunc(outer, func(o netip.Prefix) bool {
			return o.Bits() <= network.Bits() && o.Contains(network.Addr())
		}) {
			return false
		}
	}
	return true
}

// ParseCIDRs reads a list of networks that CheckCIDRs has found nothing wrong
// with. IPv4 networks in their IPv6 form (RFC 4291, section 2.5.5.2) become
// plain ones, which is what AllowsAddr compares with.
func ParseCIDRs(cidrs []string) ([]netip.Prefix, error) {
	networks := make([]netip.Prefix, 0, len(cidrs))
	for _, text := range cidrs {
		network, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("%q is not a network", text)
		}
		if addr := network.Addr(); addr.Is4In6() && network.Bits() >= 96 {
			network = netip.PrefixFrom(addr.Unmap(), network.Bits()-96)
		}
		networks = append(networks, network.Masked())
	}
	return networks, nil
}

// AllowsAddr reports whether an address is in one of the networks, or there are
// none. An IPv4 address may be in either form. The zero address is in no network.
func AllowsAddr(networks []netip.Prefix, addr netip.Addr) bool {
	if len(networks) == 0 {
		return true
	}
	addr = addr.Unmap().WithZone("")
	return slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(addr) })
}
