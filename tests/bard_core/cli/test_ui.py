"""``bard ui`` takes the next free port, says so, and names the page of the comparison; tests/bard_core/tracking looks at that."""

import socket

from bard_core.cli import ui


def test_a_taken_port_is_told_and_the_next_one_used(bard, bard_home, monkeypatch):
    started = []
    monkeypatch.setattr(ui.subprocess, "call", lambda command, env: started.append(command) or 0)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        said = bard("ui", "--port", port)
    used = int(started[0][started[0].index("--port") + 1])
    assert used > port and f"port {port} is taken; using {used}" in said
    assert f"http://127.0.0.1:{used}/#/experiments/1/models?workflowType=machine_learning" in said
    monkeypatch.setattr(ui, "_free", lambda port: False)
    bard("ui", expect=1)
    assert "ports 5000 to 5019 are all taken" in bard.err
