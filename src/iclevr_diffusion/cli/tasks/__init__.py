"""The work of the commands; it imports torch, Lightning and diffusers, which --help need not."""
