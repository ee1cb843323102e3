"""What is trained: names, shapes, first values, and the errors of specifications that do not fit a model."""

from pathlib import Path

import pytest
import torch
from confide.codec.tensors import TensorSchema
from confide.errors import ModelError, SpecificationError
from confide.models.trainable import build, initial_state, load_trainable, schema_of, trainable_tensors

from tests.tiny_models import tiny_bert, tiny_gpt2, tiny_llama
from tests.training_specs import specification


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    makers = {"llama": tiny_llama, "gpt2": tiny_gpt2, "bert": tiny_bert}
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in makers.items()}


TARGETS = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"], "bert": ["query", "dense"]}
CASES = [
    (family, method, kind, scheme)
    for family in TARGETS
    for method in ("causal_lm", "masked_lm", "classification", "contrastive")
    for kind, scheme in (
        ("lora", "average"),
        ("lora", "ffa"),
        ("lora", "fedsvd"),
        ("lora", "fedsb"),
        ("full", "average"),
    )
    if (method == "masked_lm") == (family == "bert") or method in {"classification", "contrastive"}
]


@pytest.mark.parametrize(("family", "method", "kind", "scheme"), CASES)
def test_schema_without_weights_equals_the_built_models(
    folders: dict[str, Path], family: str, method: str, kind: str, scheme: str
) -> None:
    spec = specification(
        adapter={"kind": kind, "aggregation": scheme, "target_modules": TARGETS[family]},
        method={"name": method, "labels": ["low", "high"]},
        model={"dtype": "bfloat16"},
    )
    model = build(spec, folders[family])
    schema = schema_of(spec, folders[family])
    state = initial_state(spec, folders[family])
    assert TensorSchema.of(trainable_tensors(model)) == schema == TensorSchema.of(state)
    assert all(tensor.dtype == torch.float32 for tensor in trainable_tensors(model).values())
    assert all("default" not in name and "base_layer" not in name for name in schema.names)
    load_trainable(model, state)


def test_names_are_stable(folders: dict[str, Path]) -> None:
    schema = schema_of(specification(adapter={"first_layer": 1, "target_modules": ["v_proj"]}), folders["llama"])
    assert schema.entries == (
        ("model.layers.1.self_attn.v_proj.lora_A", (4, 32)),
        ("model.layers.1.self_attn.v_proj.lora_B", (16, 4)),
    )


def test_initial_state_depends_on_the_seed_and_names_only(folders: dict[str, Path]) -> None:
    torch.manual_seed(1)
    first = initial_state(specification(), folders["llama"])
    torch.manual_seed(2)
    again = initial_state(specification(), folders["llama"])
    fewer = initial_state(specification(adapter={"first_layer": 1}), folders["llama"])
    other = initial_state(specification(seed=6), folders["llama"])
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        if name in fewer:
            assert torch.equal(tensor, fewer[name])
        if name.endswith("lora_A"):
            assert not torch.equal(tensor, other[name])
            assert tensor.abs().max() <= 32**-0.5 and tensor.std() > 0.05
        else:
            assert not tensor.any()


def test_adapters_start_without_effect(folders: dict[str, Path]) -> None:
    ids = torch.arange(5, 25).reshape(2, 10)
    base = build(specification(method={"name": "in_context"}, training={"local_steps": 0}), folders["llama"])
    for scheme in ("average", "ffa", "rolora", "fedsvd", "fedsb"):
        spec = specification(adapter={"aggregation": scheme})
        model = build(spec, folders["llama"])
        load_trainable(model, initial_state(spec, folders["llama"]))
        with torch.no_grad():
            torch.testing.assert_close(model(input_ids=ids).logits, base(input_ids=ids).logits)


def test_in_context_trains_nothing(folders: dict[str, Path]) -> None:
    spec = specification(method={"name": "in_context"}, training={"local_steps": 0})
    assert schema_of(spec, folders["llama"]).size == 0
    assert initial_state(spec, folders["llama"]) == {}


def test_from_scratch_draws_the_architectures_own_initialization(folders: dict[str, Path]) -> None:
    spec = specification(model={"initial": "random"}, adapter={"kind": "full"})
    torch.manual_seed(1)
    state = initial_state(spec, folders["llama"])
    torch.manual_seed(2)
    again = initial_state(spec, folders["llama"])
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert state["model.layers.0.self_attn.q_proj.weight"].std().item() == pytest.approx(0.02, rel=0.2)
    assert (state["model.norm.weight"] == 1).all()
    pretrained = initial_state(specification(adapter={"kind": "full"}), folders["llama"])
    assert not torch.equal(state["model.embed_tokens.weight"], pretrained["model.embed_tokens.weight"])


def test_gradients_stop_below_the_first_adapted_layer(folders: dict[str, Path]) -> None:
    """The frozen lower layers must not build a graph: that is most of the speed of adapters on the upper layers."""
    model = build(specification(adapter={"first_layer": 1}), folders["llama"])
    seen: list[bool] = []
    for layer in model.model.layers:  # type: ignore[union-attr]
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    model(input_ids=torch.arange(5, 15)[None])
    assert seen == [False, True]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"adapter": {"target_modules": ["c_attn"]}}, r"'c_attn'.*this model has 2 layers with .*q_proj"),
        ({"adapter": {"first_layer": 2}}, "from layer 2 on"),
        ({"adapter": {"rank": 17}}, r"adapter\.rank is 17.*at most 16"),
        ({"method": {"name": "masked_lm"}}, "no head for method 'masked_lm'"),
    ],
)
def test_unfit_specifications_are_named(folders: dict[str, Path], sections: dict[str, object], message: str) -> None:
    spec = specification(**sections)
    with pytest.raises(ModelError, match=message):
        schema_of(spec, folders["llama"])
    with pytest.raises(ModelError, match=message):
        build(spec, folders["llama"])


def test_combinations_without_meaning_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(SpecificationError, match="random"):
        schema_of(specification(model={"initial": "random"}), folders["llama"])
    with pytest.raises(SpecificationError, match="only an adapter"):
        schema_of(specification(adapter={"quantize_base": "4bit", "kind": "full"}), folders["llama"])


def test_a_quantized_base_is_planned_anywhere_and_built_on_a_gpu(folders: dict[str, Path]) -> None:
    spec = specification(adapter={"quantize_base": "4bit"}, model={"dtype": "bfloat16"})
    assert schema_of(spec, folders["llama"]) == schema_of(specification(), folders["llama"])
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="needs an NVIDIA GPU"):
            build(spec, folders["llama"])


def test_a_bare_encoder_has_no_masked_lm_head(tmp_path: Path) -> None:
    base = tiny_bert(tmp_path, head=False)
    spec = specification(method={"name": "masked_lm"}, adapter={"target_modules": ["query"]})
    with pytest.raises(ModelError, match="choose a base model with that head"):
        build(spec, base)


def test_wrong_tensors_are_refused(folders: dict[str, Path]) -> None:
    spec = specification()
    model = build(spec, folders["llama"])
    state = initial_state(spec, folders["llama"])
    name = next(iter(state))
    with pytest.raises(ModelError, match="differ for example"):
        load_trainable(model, {**state, "extra": torch.zeros(1)})
    with pytest.raises(ModelError, match="has shape"):
        load_trainable(model, {**state, name: torch.zeros(1)})


@pytest.mark.parametrize("content", ["", "{}", '{"model_type": "unknown-family"}', "[1]"])
def test_damaged_configurations_are_named(folders: dict[str, Path], tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError):
        schema_of(specification(), tmp_path)
