"""The served model: an OpenAI-compatible endpoint over engines that know models by their content's hash only."""
