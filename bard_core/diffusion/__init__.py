"""Pure tensor mathematics of block diffusion: layout and mask, noise, losses. Imports nothing of ours."""
