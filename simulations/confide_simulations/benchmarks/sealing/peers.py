"""Two more ways to send an update: in the open through Flower's message types, and under CKKS by TenSEAL."""

from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide_simulations.benchmarks.meta import median_cpu_seconds, peak_mib

# CKKS parameters of facts others publish for federated averaging: 4,096 values a ciphertext, about 40 bits of scale.
_CKKS_SLOTS = 4096
_CKKS_CHAIN = [60, 40, 40]
_CKKS_LARGEST = 40 * _CKKS_SLOTS


def measure_plain(update: NDArray[np.float32], nodes: int, repetitions: int) -> dict[str, Any]:
    """Unprotected FedAvg: a float32 array record made, hashed and serialised; inflated and averaged."""
    from flwr.app import ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    sent: dict[str, bytes] = {}
    root = [""]

    def send() -> None:
        content = RecordDict({"arrays": ArrayRecord([update]), "metrics": MetricRecord({"num-examples": 1})})
        root[0] = content.object_id
        sent.clear()
        sent.update({name: item.deflate() for name, item in get_all_nested_objects(content).items()})

    def receive() -> None:
        records = [inflate_object_from_contents(root[0], dict(sent)) for _ in range(nodes)]
        mean = aggregate_arrayrecords(records, "num-examples")  # type: ignore[arg-type]
        if not np.allclose(mean.to_numpy_ndarrays()[0], update, rtol=1e-5):
            raise AssertionError("Flower's plain path did not return the mean: the benchmark drives it wrongly")

    client = median_cpu_seconds(send, repetitions)
    return {
        "client_ns_per_param": client / update.size * 1e9,
        "coordinator_ns_per_param": median_cpu_seconds(receive, repetitions) / update.size * 1e9,
        "wire_bits_per_param": 8 * sum(map(len, sent.values())) / update.size,
        "client_peak_mib": peak_mib(send),
    }


def measure_ckks(update: NDArray[np.float32], nodes: int, repetitions: int) -> dict[str, Any]:
    """Encrypt and serialise; deserialise and add n ciphertexts. The decryption, at whoever holds the key, stands apart.

    Its cost is proportional to the number of ciphertexts, so at most 40 of them are measured.
    """
    names = ("client_ns_per_param", "coordinator_ns_per_param", "wire_bits_per_param", "client_peak_mib")
    if find_spec("tenseal") is None:
        return dict.fromkeys(names) | {"reason": "TenSEAL is not installed: pip install tenseal"}
    import tenseal as ts

    count = min(update.size, _CKKS_LARGEST)
    pieces = [update[i : i + _CKKS_SLOTS].tolist() for i in range(0, count, _CKKS_SLOTS)]
    context = ts.context(ts.SCHEME_TYPE.CKKS, poly_modulus_degree=2 * _CKKS_SLOTS, coeff_mod_bit_sizes=_CKKS_CHAIN)
    context.global_scale = 2**40
    sent: list[bytes] = []
    opened: list[Any] = []

    def send() -> None:
        sent[:] = [ts.ckks_vector(context, piece).serialize() for piece in pieces]

    def receive() -> None:
        opened[:] = [ts.ckks_vector_from(context, data) for data in sent]
        for _ in range(nodes - 1):
            for total, data in zip(opened, sent, strict=True):
                total += ts.ckks_vector_from(context, data)

    client = median_cpu_seconds(send, repetitions)
    coordinator = median_cpu_seconds(receive, repetitions)
    decryption = median_cpu_seconds(lambda: [vector.decrypt() for vector in opened], repetitions)
    if not np.allclose(opened[0].decrypt(), nodes * np.array(pieces[0]), atol=1e-4):
        raise AssertionError("CKKS did not open to the sum: the benchmark drives it wrongly")
    return {
        "client_ns_per_param": client / count * 1e9,
        "coordinator_ns_per_param": coordinator / count * 1e9,
        "decryption_ns_per_param": decryption / count * 1e9,
        "wire_bits_per_param": 8 * sum(map(len, sent)) / count,
        "client_peak_mib": peak_mib(send),
        "reason": f"measured on {count} parameters, of which memory too",
    }
