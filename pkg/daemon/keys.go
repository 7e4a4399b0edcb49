package daemon

// WrongKeyError makes a configuration error of one that says that the database was
// used with another key than encryption-key.
func WrongKeyError(err error) *ConfigError {
	const name = "encryption-key"
	return &ConfigError{Problems: []Problem{{Flag: "--" + name, Env: EnvName(name), Detail: err.Error()}}}
}

// EncryptionKeys declares the settings for the keys that seal secrets at rest, for
// every command that has any to do with them. setCurrent and setOld get their
// texts while settings are checked, and say what is wrong with them without
// repeating anything of them.
func EncryptionKeys(s *Settings, setCurrent, setOld func(text string) error) {
	var current, old SecretString
	s.Required("encryption-key")
	s.Secret(&current, "encryption-key", "base64 of the 32 bytes that seal secrets at rest, the same for all processes; make one with: openssl rand -base64 32")
	s.Check("encryption-key", func() error { return setCurrent(current.Reveal()) })
	s.Secret(&old, "old-encryption-keys", "keys that were used before, comma separated, which open what is sealed under them still; for the time in which a key is replaced")
	s.Check("old-encryption-keys", func() error { return setOld(old.Reveal()) })
}
