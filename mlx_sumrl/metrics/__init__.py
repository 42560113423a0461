"""Text -> numbers: how much of a reference is in it, how often it says the same. Rewards pay for them, evaluation
reports them; no policy and no prompt is known here. Never imports mlx (an encoder's own two files do)."""
