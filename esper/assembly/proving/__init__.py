"""A proof beside a claim: the grown network and its controls, trained on paired seeds."""
