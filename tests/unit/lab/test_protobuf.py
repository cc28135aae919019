"""Objects in Kubernetes' protobuf encoding, which kubectl and controllers in Go send."""

import pytest

from podidentity_lab.kubernetes import protobuf
from podidentity_lab.kubernetes.statuses import ApiError


def encoded(number: int, value: bytes | int) -> bytes:
    """Return one field on the wire, shorter than 128 bytes."""
    return bytes([number << 3, value]) if isinstance(value, int) else bytes([number << 3 | 2, len(value)]) + value


def body(api_version: str, kind: str, raw: bytes) -> bytes:
    """Return an object in its envelope."""
    type_meta = encoded(1, api_version.encode()) + encoded(2, kind.encode())
    return protobuf.MAGIC + encoded(1, type_meta) + encoded(2, raw)


def test_zero_is_kept_where_it_says_something() -> None:
    """A zero is kept in fields that are pointers in Go, such as replicas: none is not the same as not set."""
    spec = encoded(1, 0) + encoded(4, b"") + encoded(5, 0)  # replicas, strategy, minReadySeconds
    deployment = protobuf.read(body("apps/v1", "Deployment", encoded(1, encoded(1, b"web")) + encoded(2, spec)))
    assert deployment == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {"replicas": 0},
    }


def test_a_volume_is_one_object_with_its_source() -> None:
    """A volume's source is nested in protobuf and not in JSON; an empty source is an empty object."""
    volume = encoded(1, b"scratch") + encoded(2, encoded(2, b""))
    pod = protobuf.read(body("v1", "Pod", encoded(2, encoded(1, volume))))
    assert pod["spec"]["volumes"] == [{"name": "scratch", "emptyDir": {}}]


def test_times_numbers_and_either_of_two() -> None:
    """Times become text, a port its number or name, and secrets base64."""
    probe = encoded(1, encoded(2, encoded(2, encoded(1, 1) + encoded(3, b"http"))))  # httpGet, its port
    container = encoded(1, b"main") + encoded(10, probe)
    pod = protobuf.read(body("v1", "Pod", encoded(1, encoded(8, encoded(1, 1))) + encoded(2, encoded(2, container))))
    assert pod["metadata"] == {"creationTimestamp": "1970-01-01T00:00:01Z"}
    assert pod["spec"]["containers"][0]["livenessProbe"] == {"httpGet": {"port": "http"}}
    secret = protobuf.read(body("v1", "Secret", encoded(2, encoded(1, b"key") + encoded(2, b"value"))))
    assert secret["data"] == {"key": "dmFsdWU="}


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"", 400),
        (b"{}", 400),
        (protobuf.MAGIC + b"\xff\xff", 400),
        (body("v1", "Pod", b"\xff"), 400),
        (body("v1", "Pod", encoded(1, encoded(17, encoded(7, encoded(1, b"{"))))), 400),
        (body("autoscaling/v2", "HorizontalPodAutoscaler", b""), 415),
        (body("", "", b""), 415),
    ],
)
def test_what_cannot_be_read_is_refused(raw: bytes, status: int) -> None:
    """The status is 400 for a malformed object, 415 for an unknown kind."""
    with pytest.raises(ApiError) as caught:
        protobuf.read(raw)
    assert caught.value.status == status
