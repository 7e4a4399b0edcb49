package strictjson

import (
	"errors"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// Object reads a member that is an object with these members; nil when it is absent
// or null, and when it is something else or has other members, which are faults of o.
// What its own reading methods find wrong is among its own Faults, with pointers that
// begin at it.
func (o *Object) Object(name string, names ...string) *Object {
	if !o.Has(name) {
		return nil
	}
	raw := o.Raw(name)
	if raw[0] != '{' {
		o.fault("/"+name, "must be an object, not "+kind(raw))
		return nil
	}
	inner, err := parseObject("field", raw, "", names)
	var malformed *webhook.Error
	if errors.As(err, &malformed) {
		for _, f := range malformed.Fields {
			o.fault("/"+name+f.Pointer, f.Detail)
		}
		return nil
	}
	return inner
}
