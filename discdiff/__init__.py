"""Train, tune, sample and evaluate every family of discrete diffusion, with numbers that can be compared."""
