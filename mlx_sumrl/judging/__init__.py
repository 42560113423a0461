"""A larger model judges summaries: prompts that a summary cannot steer, replies read strictly, scores, agreement.

A room of its own, since evaluation and rewards both stand on it. Never imports mlx.
"""
