"""Raw text -> prepared text with its personal data masked, in training as in serving."""
