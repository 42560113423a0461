"""SFT, advantages, the GRPO loss, the optimiser, the curriculum, the loop, checkpoints."""
