"""What flytekit tells Flyte: the templates arrive, and the cluster ends with its job; tests/deploy/test_rayjob.py goes on."""

from flytekit.configuration import Image, ImageConfig, SerializationSettings

from tasks.pbm import pbm


def test_node_groups_arrive_with_their_templates():
    image = Image(name="train", fqn="ghcr.io/example/bard", tag="1")
    settings = SerializationSettings(image_config=ImageConfig(default_image=image, images=[image]))
    sent = pbm.get_custom(settings)
    assert sent["shutdownAfterJobFinishes"] is True and sent["ttlSecondsAfterFinished"] == 60
    head = sent["rayCluster"]["headGroupSpec"]["k8sPod"]["podSpec"]
    (worker,) = sent["rayCluster"]["workerGroupSpec"]
    gpu = worker["k8sPod"]["podSpec"]
    assert head["containers"][0]["name"] == "ray-head" and gpu["containers"][0]["name"] == "ray-worker"
    assert gpu["containers"][0]["resources"]["limits"]["cpu"] == "2"
    assert "tolerations" not in gpu and "tolerations" not in head
    for pod in (head, gpu):
        assert pod["volumes"][0]["emptyDir"]["medium"] == "Memory"
