"""Every setting: schema, profiles, and loading from YAML, keywords and the command line."""
