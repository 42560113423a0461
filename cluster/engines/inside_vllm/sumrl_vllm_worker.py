"""What runs inside vLLM's own processes: whole new weights, the head included. Never imports mlx, nor this library.

Invariant: after `load_policy` every layer computes with the weights of the folder. vLLM's ``reload_weights`` alone does
not see to that on a CPU: there a layer's weights are packed once for the matrix product, and of a head that is tied to
the embedding only the embedding is packed again (seen with 0.32.0: log-probabilities off by 0.4 after a reload that
moved the embedding). This folder is all that vLLM's environment gets to see of the project.
"""

from __future__ import annotations

from typing import Any


class PolicyWeights:
    """Mixed into vLLM's worker: ``--worker-extension-cls sumrl_vllm_worker.PolicyWeights``."""

    model_runner: Any

    def load_policy(self, path: str) -> int:
        """Sample from the whole weights in a folder; how many packed layers were packed again."""
        self.model_runner.reload_weights(weights_path=path)
        packed = [
            module
            for module in self.model_runner.get_model().modules()
            # A linear layer's own weight is gone once it is packed, and vLLM packs that one again itself.
            if "cpu_linear" in vars(module) and module.weight.numel() > 0
        ]
        for module in packed:
            module.quant_method.process_weights_after_loading(module)
        return len(packed)
