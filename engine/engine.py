"""A model that runs with its experts in host memory: load, generate, close."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from engine.checkpoints.hub_cache import find_checkpoint
from engine.checkpoints.loader import load_experts, load_rest
from engine.checkpoints.model_pair import check_folders, load_draft
from engine.decoding.decoder import Decoder
from engine.decoding.recorder import Lines, Recorder
from engine.decoding.sampled_request import SampledRequest
from engine.decoding.sampler import Sampler
from engine.decoding.session import Session, Weights
from engine.generation import Generation, Output, Piece
from engine.memory.closing import Closing
from engine.memory.host_store import HostStore
from engine.memory.integrity import check_weights
from engine.memory.slot_buffer import SlotBuffer
from engine.options import NGRAM, NO_DRAFT, Options
from engine.plan import Plan, make_plan
from engine.run_statistics import RunStatistics
from spmoe.drive.dispatcher import Observer
from spmoe.errors import InputError


class Engine(RunStatistics, Closing):
    """A Mixture-of-Experts model whose experts travel, and the draft model that speculates for it.

    Use it in a `with` block, or `close` it: threads and memory are its own.  One request at a time, batch 1.
    """

    def __init__(
        self,
        plan: Plan,
        observers: Sequence[Observer] = (),
        *,
        record: bool = False,
        lines: Lines | None = None,
    ) -> None:
        """Loads what `plan` says; `observers` see every event with the scheduler's answer, and with `record` notes are
        taken for a trace, whose `lines` are kept there (None: in memory).

        Raises InputError where memory does not suffice or a checkpoint turns out bad.
        """
        self.plan = plan
        with ExitStack() as stack, plan.oom_as_input_error():
            self._load(stack)
            self.recorder = Recorder(plan.config.layers, plan.config.experts, lines) if record else None
            self._connect(stack, tuple(observers))
            self._stack = stack.pop_all()
        self._busy = False

    @classmethod
    def from_pretrained(
        cls, model: str | Path, draft: str | Path | None = None, *, record: bool = False, **options: Any
    ) -> Self:
        """Loads the checkpoints `model` and `draft`: folders, or repositories in the hub's local cache.  Without
        one "ngram" drafts what came before in the text; None and "none" draft nothing.

        `policy` names a recipe (`python -m sim policies` lists them).  `vram` (a size, or bytes), `cache` (share of all
        experts) or `slots` (experts) says how much room experts have on the device.  `gamma` is how many tokens a round
        drafts; without it, policies that choose that draft up to `gamma_max` (default 16), the others 4.  `cutoff` is
        for how many leading layers SP-MoE prefetches, `context` the longest request, in tokens, that room is reckoned
        for.  `device` is "cuda" or "cpu", `dtype` "float32", "bfloat16", "float16" or "float64", `kernel` "plain", or
        "triton" for kernels of our own.  `hardware` is the profile whose figures the policy reckons with.  On the CPU
        `link_gbps` slows copies down to so many 10^9 bytes per second.  `virtual_time` names a profile: the run decides
        as a simulation of that machine would.  `layer_map`: for each MoE layer the draft layer that matches it, where
        the models differ in depth.  `earlier` is a trace of an earlier run, for policies that learn from one.
        `cpu_experts=False` keeps the CPU from computing experts, `lossy` allows policies that change the output, and
        `host_memory` limits the bytes taken of the host's.  With `record`, notes are taken for `recorder`.

        Raises InputError, one line, for whatever is wrong with folders or options.
        """
        options["ngram"] = draft == NGRAM
        without = draft in (None, NGRAM, NO_DRAFT)
        folders = find_checkpoint(model), None if without else find_checkpoint(draft or "")
        check_folders(*folders)
        return cls(make_plan(*folders, Options(**options)), record=record)

    def generate(
        self, prompt: str | Sequence[int] | None = None, max_new_tokens: int = 128, **options: Any
    ) -> Generation:
        """What follows `prompt` (text, or token ids) or `messages`; `options` as in `stream`."""
        return Generation.of(self.stream(prompt, max_new_tokens, **options))

    def stream(
        self,
        prompt: str | Sequence[int] | None = None,
        max_new_tokens: int = 128,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        chat_template_args: Mapping[str, Any] = MappingProxyType({}),
        stop: str | Sequence[str] = (),
        logprobs: int | None = None,
        ignore_eos: bool = False,
        keep_context: bool = False,
        greedy: bool = False,
        **sampling: Any,
    ) -> Iterator[Piece]:
        """What follows `prompt`, round by round.  Time that passes between two pieces counts as decoding.

        Instead of a prompt there may be `messages` (mappings with a role and content), put into the model's chat
        template with `chat_template_args`.  Ends after `max_new_tokens` tokens, with a text of `stop`, which is not put
        out, or, unless `ignore_eos`, with one of the model's end-of-sequence tokens.  `sampling` are fields of
        `Sampling`; those not given, or None, are as the checkpoint's generation_config.json says, else greedy, as
        `greedy` asks for.  A seed draws the same tokens again, unless a policy chooses draft lengths by measured time.
        `logprobs`: pieces have those of their tokens, and of so many likeliest ones.  With `keep_context` what a prompt
        has in common with the request before is not read again, unless that is recorded.

        Raises InputError for a prompt or numbers out of range, `TransferFailed` where a copy failed twice, and
        RuntimeError where the engine is closed, busy with another request or broken by an earlier error.
        """
        tokens = self.plan.encode(prompt, messages, chat_template_args)
        self.plan.check_request(tokens, max_new_tokens)
        chosen = self.plan.sampling.override(greedy=greedy, **sampling)
        ends = frozenset[int]() if ignore_eos else self.ends
        output = Output(self.plan.tokenizer, len(tokens), max_new_tokens, ends, stop, chosen.min_tokens)
        self._require_open()
        sampler = Sampler(chosen, self._vocabulary, ends)
        session = self._session
        request = SampledRequest(
            self._requests,
            tokens,
            max_new_tokens,
            ends,
            sampler,
            session.lengths,
            session.draft_room,
            logprobs,
            keep_context and self.recorder is None,
        )
        return self._stream(request, output)

    def finish(self) -> None:
        """Waits for what is on the link yet: only then have observers, metrics and transfers seen all of the run.

        Call it after the last request; others may follow all the same.
        """
        self._require_open()
        self._driver.finish()

    def kept_tokens(self) -> tuple[int, int]:
        """How many tokens of prompts so far were not read again, and how many there were."""
        return self._decoder.kept_tokens, self._decoder.prompt_tokens

    def check_weights(self) -> None:
        """Compares every expert in a slot with the host store, and the store with what was loaded.

        For tests and for whoever doubts their memory: it reads all of it.  Raises RuntimeError, naming the expert.
        """
        self._require_open()
        check_weights(self._store, self._slots, self._driver.resident())

    def close(self) -> None:
        """Stops the threads and gives the memory back.  Idempotent."""
        self._stack.close()

    def _load(self, stack: ExitStack) -> None:
        """Models, host store and slots."""
        plan = self.plan
        plan.check_memory()
        blueprint, device = plan.blueprint, plan.device
        # Slots first: should they not fit the device, nobody has waited for the files yet.
        self._slots = SlotBuffer(blueprint.layout, plan.setting.slots, device)
        self._model = load_rest(blueprint).to(device)
        self._draft_model = None if plan.draft is None else load_draft(plan.draft, plan.dtype, device)
        self._store = HostStore(blueprint.layout, blueprint.geometry.keys, device.type == "cuda")
        load_experts(blueprint, self._store)
        self._store.seal()
        stack.callback(self._free)
        self._vocabulary: int = self._model.config.get_text_config().vocab_size
        self.ends = _ends(self._model.generation_config.eos_token_id, blueprint.checkpoint.folder)
        """The tokens that end a sequence."""

    def _connect(self, stack: ExitStack, observers: tuple[Observer, ...]) -> None:
        """The session, with the models in it."""
        plan, setting, options = self.plan, self.plan.setting, self.plan.options
        self._session = stack.enter_context(
            Session(
                Weights(self._model, self._draft_model, self._store),
                self._slots,
                plan.config,
                plan.earlier_run.future,
                kernel=options.kernel,
                layer_map=plan.layer_map,
                gbps=options.link_gbps,
                latency_ns=0 if options.link_gbps is None else setting.hardware.link.latency_ns,
                imitated=None if options.virtual_time is None else setting.cost,
                observers=(*self._watch(plan.config.experts, setting.budget.expert), *observers),
                recorder=self.recorder,
                ngram=plan.ngram,
            )
        )
        self._driver = self._session.driver
        self._decoder = Decoder(self._session, plan.earlier_run.popular, plan.earlier_run.touched, self.recorder)
        self._requests = 0

    def _stream(self, request: SampledRequest, output: Output) -> Iterator[Piece]:
        self._require_open()
        if self._busy:
            raise RuntimeError("the engine is busy with another request, or was left in the middle of one by an error")
        self._busy = True
        self._requests += 1
        with self.plan.oom_as_input_error(), closing(self._decoder.run(request)) as rounds:
            for tokens in rounds:
                piece = output.piece(tokens, request.take_logprobs())
                try:
                    yield piece
                except GeneratorExit:
                    self._busy = False  # Between two rounds: another request may follow.
                    raise
                self._require_open()
                if piece.finish_reason is not None:
                    break
        self._busy = False

    def _require_open(self) -> None:
        if "_decoder" not in self.__dict__:
            raise RuntimeError("the engine is closed")

    def _free(self) -> None:
        """Lets go of everything large."""
        del self._model, self._draft_model, self._store, self._slots
        for name in ("_decoder", "_driver", "_session"):
            self.__dict__.pop(name, None)  # Not there yet where setting up has failed.


def _ends(said: Any, folder: Path) -> frozenset[int]:
    """The tokens that end a sequence, from what generation_config.json or config.json says: one, several or none."""
    ends = said if isinstance(said, list) else [] if said is None else [said]
    if not all(type(each) is int for each in ends):
        raise InputError(f"{folder}: eos_token_id: expected numbers of tokens, got {said!r}")
    return frozenset(ends)
