"""Messages to prompts, and sampled tokens back to reasoning, content and tool calls.

>>> from baleen.protocol import Encoder
>>> prompt = Encoder().encode([{"role": "user", "content": "hello"}], effort="low")
>>> prompt.text
'<｜begin▁of▁sentence｜><｜User｜>hello<｜Assistant｜><think>'
>>> turn = prompt.parser()
>>> _ = turn.feed("A greeting.</think>Hello!")
>>> turn.finish("stop").content
'Hello!'
"""

from baleen.protocol.encoder import Encoder
from baleen.protocol.parser import Parser, parse
from baleen.protocol.prompt import Prompt
from baleen.protocol.turn import Turn

__all__ = ["Encoder", "Parser", "Prompt", "Turn", "parse"]
