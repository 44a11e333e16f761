"""The command line's `--json`: plain dictionaries with keys that stay.

Durations are in seconds and end in `_s`; moments are ISO 8601 in UTC; what is unknown is null.
"""

import base64
from datetime import datetime
from typing import Any

from tetriserve.types import Cluster, Event, Quote, RequestStatus, Span

Json = dict[str, Any]


def status_json(status: RequestStatus, *, spans: bool = False) -> Json:
    """A request; with `spans` also what ran where, and the degrees in order."""
    request, image = status.request, status.request.image
    fields: Json = {
        "id": request.id,
        "stage": status.stage.value,
        "verdict": status.verdict.value,
        "prompt": image.prompt,
        "negative_prompt": image.negative_prompt,
        "lora": image.lora or None,
        "lora_scale": image.lora_scale if image.lora else None,
        "width": image.width,
        "height": image.height,
        "steps": image.steps,
        "seed": image.seed,
        "guidance": image.guidance,
        "deadline_s": request.deadline,
        "weight": request.weight,
        "on_late": request.on_late.value,
        "promised": status.promised,
        "steps_done": status.steps_done,
        "slots": list(status.slots),
        "degree": status.degree,
        "submitted_at": _moment(status.submitted_at),
        "deadline_at": _moment(status.deadline_at),
        "finished_at": _moment(status.finished_at),
        "latency_s": status.latency,
        "gpu_seconds": status.gpu_seconds,
        "error": status.error,
        "warnings": list(status.warnings),
    }
    if spans:
        fields["degrees"] = list(status.degrees)
        fields["spans"] = [_span_json(span) for span in status.spans]
    return fields


def event_json(event: Event) -> Json:
    """A change of a request."""
    found = {"at": _moment(event.at), "request": status_json(event.status)}
    if event.preview:
        jpeg = base64.b64encode(event.preview.jpeg).decode()
        found["preview"] = {"step": event.preview.step, "jpeg_base64": jpeg}
    return found


def quote_json(quote: Quote) -> Json:
    """When an image could be done."""
    return {"earliest_s": quote.earliest, "alone_s": quote.alone, "gpu_seconds": quote.gpu_seconds}


def policy_json(cluster: Cluster) -> Json:
    """The policy in force and those there are."""
    return {"policy": cluster.policy, "policies": list(cluster.policies)}


def cluster_json(cluster: Cluster) -> Json:
    """The executors, the queue and the policy."""
    model = cluster.model
    return {
        "ready": cluster.ready,
        **policy_json(cluster),
        "admission": cluster.admission,
        "outstanding": cluster.outstanding,
        "queue_limit": cluster.queue_limit,
        "rounds": cluster.rounds,
        "expected_executors": cluster.expected_executors,
        "model": model
        and {
            "family": model.family,
            "name": model.name,
            "size_multiple": model.size_multiple,
            "max_side": model.max_side,
            "max_pixels": model.max_pixels,
            "max_steps": model.max_steps,
            "default_steps": model.default_steps,
            "max_prompt_tokens": model.max_prompt_tokens,
            "fingerprint": model.fingerprint,
            "loras": list(model.loras),
        },
        "warnings": list(cluster.warnings),
        "executors": [
            {
                "slot": executor.slot,
                "address": executor.address,
                "node": executor.node,
                "device": executor.device,
                "request_ids": list(executor.request_ids),
                "stage": executor.stage and executor.stage.value,
                "degree": executor.degree,
                "orders": executor.orders,
                "busy_s": executor.busy_seconds,
                "roles": [role.value for role in executor.roles],
            }
            for executor in cluster.executors
        ],
    }


def _span_json(span: Span) -> Json:
    return {
        "stage": span.stage.value,
        "slots": list(span.slots),
        "degree": span.degree,
        "first_step": span.first_step,
        "steps": span.steps,
        "batch": span.batch,
        "begin": _moment(span.begin),
        "end": _moment(span.end),
    }


def _moment(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="microseconds") if moment else None
