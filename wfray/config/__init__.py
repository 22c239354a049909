"""One pydantic tree per stage, loaded from YAML and `key=value` overrides. Imports no torch, so launchers stay light."""
