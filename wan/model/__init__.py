"""The networks: diffusers' and transformers' classes, loaded, thinly wrapped."""
