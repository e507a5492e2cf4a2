"""An environment for mini-swe-agent: its commands run in a box.

In a config of mini-swe-agent::

    environment:
      environment_class: baleen.sandbox.adapters.mini_swe_agent.BaleenEnvironment
      image: swe:1
      cwd: /testbed

A failure of the infrastructure raises. It is never told to the model as output of its command.
"""

from __future__ import annotations

import platform
from typing import Any

from minisweagent.exceptions import Submitted
from minisweagent.utils.serialize import recursive_merge
from pydantic import BaseModel, ConfigDict

from ..sync import Sandbox
from .options import BoxOptions

SUBMIT = "COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
"""mini-swe-agent's own sign: a first line of output that ends the task."""


class BaleenEnvironmentConfig(BaseModel):
    """Settings of the environment; what it does not name itself goes to the box."""

    model_config = ConfigDict(extra="allow")

    image: str = "host"
    cwd: str = "/"
    env: dict[str, str] = {}
    timeout: int = 30
    """Seconds until a command's tree is killed."""
    interpreter: list[str] = ["bash", "-lc"]


class BaleenEnvironment:
    """One box, made on construction as mini-swe-agent expects, ended by :meth:`cleanup`."""

    def __init__(self, **settings: Any) -> None:
        self.config = BaleenEnvironmentConfig(**settings)
        options = BoxOptions.from_data({"image": self.config.image, **self._box_settings()})
        self._box: Sandbox | None = Sandbox.create(**options.arguments())

    def _box_settings(self) -> dict[str, Any]:
        return dict(self.config.model_extra or {})

    def execute(
        self, action: dict[str, Any], cwd: str = "", *, timeout: int | None = None
    ) -> dict[str, Any]:
        """Runs a command; both streams come as one text, in the order in which they were written.

        Raises:
            SandboxError: the box or its host failed.
            Submitted: the command's output begins with mini-swe-agent's sign.
        """
        if self._box is None:
            raise RuntimeError("this environment was cleaned up")
        limit_s = timeout or self.config.timeout
        argv = [*self.config.interpreter, action.get("command", "")]
        result = self._box.run(
            ["/bin/sh", "-c", 'exec "$@" 2>&1', "sh", *argv],
            cwd=cwd or self.config.cwd,
            env=self.config.env,
            timeout_s=limit_s,
        )
        output = {"output": result.text, "returncode": result.exit_code, "exception_info": ""}
        if result.timed_out:
            output["returncode"] = -1
            output["exception_info"] = f"The command was killed after {limit_s} seconds."
            output["extra"] = {"exception_type": "TimeoutExpired"}
        self._check_finished(output)
        return output

    def _check_finished(self, output: dict[str, Any]) -> None:
        lines = output["output"].lstrip().splitlines(keepends=True)
        if lines and lines[0].strip() == SUBMIT and output["returncode"] == 0:
            submission = "".join(lines[1:])
            extra = {"exit_status": "Submitted", "submission": submission}
            raise Submitted({"role": "exit", "content": submission, "extra": extra})

    def get_template_vars(self, **more: Any) -> dict[str, Any]:
        """What templates may name: the config, and the machine that the box runs on."""
        merged: dict[str, Any] = recursive_merge(
            self.config.model_dump(), platform.uname()._asdict(), more
        )
        return merged

    def serialize(self) -> dict[str, Any]:
        """What mini-swe-agent writes into its trajectory."""
        name = f"{type(self).__module__}.{type(self).__name__}"
        about = {"environment": self.config.model_dump(mode="json"), "environment_type": name}
        return {"info": {"config": about}}

    def cleanup(self) -> None:
        """Ends the box. Without it, the box ends when it has been idle for long enough."""
        if self._box is not None:
            box, self._box = self._box, None
            box.close()
