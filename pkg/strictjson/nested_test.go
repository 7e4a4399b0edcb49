package strictjson_test

import (
	"fmt"
	"testing"

	"github.com/fairhook/fairhook/pkg/strictjson"
)

func TestObjectsWithinAnObject(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		body, want string // the faults of the outer and the inner one
		there      bool
	}{
		"ReadsItsMembers":          {`{"a": {"b": "x"} }`, `[] []`, true},
		"AbsentIsNone":             {`{}`, `[] []`, false},
		"NullIsNone":               {`{"a":null}`, `[] []`, false},
		"RefusesWhatIsNoObject":    {`{"a":["b"]}`, `[{/a  must be an object, not an array}] []`, false},
		"RefusesUnknownMembers":    {`{"a":{"c/d":1}}`, `[{/a/c~1d  is not a known field}] []`, false},
		"RefusesMembersGivenTwice": {`{"a":{"b":"x","b":"y"}}`, `[{/a/b  is given more than once}] []`, false},
		"LeavesMembersToTheInner":  {`{"a":{"b":5}}`, `[] [{/b  must be a string, not a number}]`, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o, err := strictjson.Parse([]byte(tc.body), "", "a")
			if err != nil {
				t.Fatal(err)
			}
			inner := o.Object("a", "b")
			got := fmt.Sprint(o.Faults(), " []")
			if inner != nil {
				value := inner.String("b")
				got = fmt.Sprint(o.Faults(), " ", inner.Faults())
				if name == "ReadsItsMembers" && value != "x" {
					t.Errorf("read %q", value)
				}
			}
			if got != tc.want || (inner != nil) != tc.there {
				t.Errorf("got %s, there: %t; want %s", got, inner != nil, tc.want)
			}
		})
	}
}
