package daemon

import "testing"

func TestCheckListen(t *testing.T) {
	t.Parallel()
	for address, good := range map[string]bool{
		":8080": true, "127.0.0.1:0": true, "[::1]:8081": true, "localhost:http": true,
		"": false, "8080": false, "nonsense": false, ":": false, "host:": false, ":65536": false, ":-1": false, "::1:80": false, ":no-such-port": false,
	} {
		if err := CheckListen(&address)(); (err == nil) != good {
			t.Errorf("CheckListen(%q) = %v", address, err)
		}
	}
}
