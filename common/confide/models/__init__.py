"""Base models pinned by hash, what of them is trained, and how the result is exported.

- `store`, `weights`: base models on this machine, each by one hash; `fresh`: a model to begin pre-training from
- `pretrained`, `architecture`, `trial`: load one, whole and without its code; does a family work with a method
- `trainable`, `aggregation`, `fedsvd`: LoRA or all of it; what is exact under a plain sum
- `sent_coordinates`: which coordinates are sent in which round
- `chat_template`, `rendering`, `answering`, `pieces`, `seeds`: text in and out, and randomness from names
- `arithmetic`: how this machine computes it
- `export`, `gguf_export`, `reward_folder`, `opinions`, `model_card`, `bound`, `adapter_hash`: the result as files,
  whether an exported file is the signed model, and the hash by which an adapter is known
"""
