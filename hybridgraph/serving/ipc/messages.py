"""Every message between a generator and its clients, and how a message becomes bytes.

A frame is 4 bytes of length (unsigned, big-endian) and that many bytes of MessagePack: one of the
structs below, told apart by its ``type``. Decoding yields these types or a ProtocolError; nothing
that is received can run code.

    client → generator   Hello, then Generate, Cancel, GetStats; Share, Prefill, DecodeStep, Finished
    generator → client   Progress…, Ready, then Queued, Token…, Done or Failed, Stats; Shared, Replayed

Between any two of the latter a Heartbeat may come.
"""

from __future__ import annotations

import struct
from typing import Any, Literal, TypeVar

import msgspec

from hybridgraph.contract import Report, Request, SourceInfo
from hybridgraph.errors import shortened

PROTOCOL_VERSION = 7
MAX_FRAME_BYTES = 1 << 20  # body of a frame; a prompt of 200,000 ids fits
LENGTH_PREFIX = struct.Struct(">I")

# Who caused a failure: this request; the engine while answering it; the generator's start; bytes that are no
# message of this protocol; another protocol version; a Cancel; the generator's end.
FailureKind = Literal["request", "engine", "start", "protocol", "version", "cancelled", "stopped"]


class ProtocolError(Exception):
    """The peer sent what this protocol does not know; one line, and the connection cannot go on."""


class FrameTooLarge(ProtocolError):
    """A frame above MAX_FRAME_BYTES, or the first bytes of something that is no frame."""


class Truncated(ProtocolError):
    """The stream ended inside a frame."""


class WrongVersion(ProtocolError):
    """The peer speaks another version of this protocol."""


class Message(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, tag_field="type", gc=False):
    """Base of all messages."""


class Hello(Message, tag="hello", forbid_unknown_fields=False):
    """The first message of every client. Its shape never changes: it is how versions learn of each other."""

    protocol: Literal["hybridgraph"]
    version: int


class Generate(Message, tag="generate"):
    """Answer one prompt. Replies: Queued where others are ahead, Token for each id, then Done or Failed."""

    request_id: int  # chosen by the client, unique within its connection
    request: Request


class Cancel(Message, tag="cancel"):
    """Stop a request that waits or is being answered; it ends in Failed("cancelled"). Unknown ids are ignored.

    Of a Share that was granted it is the end, and no failure: there is no reply.
    """

    request_id: int


class GetStats(Message, tag="get_stats"):
    """Ask for Stats; answered at once, between the tokens of whoever holds the engine."""


class Share(Message, tag="share"):
    """Ask for buffers to run dynamic operations on. They are this client's from Shared until its Cancel or its end."""

    request_id: int


class Prefill(Message, tag="prefill"):
    """Replay a prefill over the shared buffers, whose writes by the client have finished.

    Replies: Queued where others are ahead, then Replayed. The engine is this client's from Replayed until its Finished,
    its next Prefill, or a Failed with this ``request_id``: others wait, and it may not keep them waiting for long.
    """

    request_id: int
    length: int  # ids of the prompt, without padding


class DecodeStep(Message, tag="decode_step"):
    """Replay one decode step of the last Prefill, on the id in the shared buffer ``token``. Reply: Replayed."""

    request_id: int


class Finished(Message, tag="finished"):
    """The client has read the last logits of its answer: background work may use the buffers. No reply but Failed."""

    request_id: int


class Progress(Message, tag="progress"):
    """How far the generator's start is."""

    stage: str  # "loading weights", "capturing graphs"
    done: int
    total: int  # 0: unknown


class Ready(Message, tag="ready"):
    """The generator serves from here on."""

    info: SourceInfo
    startup_s: float  # from the generator's first step to here


class Queued(Message, tag="queued"):
    """Others hold or wait for the engine; for a client's first request sent again whenever the position changes."""

    request_id: int
    position: int  # requests of other clients ahead of this one, the one being answered included


class Heartbeat(Message, tag="heartbeat"):
    """The generator lives. Sent every few seconds to whoever waits for something that takes longer."""


class Token(Message, tag="token"):
    """One sampled id, sent when it exists."""

    request_id: int
    id: int


class Done(Message, tag="done"):
    """The answer is complete."""

    request_id: int
    report: Report


class Failed(Message, tag="failed"):
    """A request failed, or (``request_id`` None) the connection did. One line for the user."""

    request_id: int | None
    kind: FailureKind
    error: str


class Stats(Message, tag="stats"):
    """Counters and costs of the generator's life so far, as JSON values."""

    values: dict[str, Any]


class CudaBuffer(msgspec.Struct, frozen=True, kw_only=True, tag="cuda"):
    """A tensor in GPU memory, as the CUDA driver and PyTorch's reference counting name it to another process."""

    dtype: str  # "float16"
    shape: tuple[int, ...]
    offset: int  # elements from the start of the storage
    device: int  # ordinal in the exporter
    device_uuid: str  # of the GPU: ordinals differ where CUDA_VISIBLE_DEVICES does
    memory_handle: bytes  # cudaIpcMemHandle_t of the allocation that holds the storage, with PyTorch's prefix
    storage_bytes: int
    storage_offset_bytes: int  # of the storage in the allocation
    counter_handle: bytes  # shared-memory name of the reference counters
    counter_offset: int
    event_handle: bytes  # cudaIpcEventHandle_t: the exporter's writes so far
    event_sync_required: bool


class CpuBuffer(msgspec.Struct, frozen=True, kw_only=True, tag="cpu"):
    """A tensor in shared memory, whose descriptor travels beside the frame (SCM_RIGHTS)."""

    dtype: str
    shape: tuple[int, ...]
    offset: int  # elements from the start of the storage
    storage_bytes: int
    descriptor_index: int  # which of the descriptors sent with the frame


class Shared(Message, tag="shared"):
    """The lent buffers by name; see ``hybridgraph.serving.ipc.buffers.SHARED_NAMES``."""

    request_id: int
    buffers: dict[str, CudaBuffer | CpuBuffer]


class Replayed(Message, tag="replayed"):
    """The replay has finished on the device: the shared logits may be read."""

    request_id: int
    report: Report | None  # of a prefill


ToServer = Hello | Generate | Cancel | GetStats | Share | Prefill | DecodeStep | Finished
ToClient = Progress | Ready | Queued | Heartbeat | Token | Done | Failed | Stats | Shared | Replayed

HELLO = Hello(protocol="hybridgraph", version=PROTOCOL_VERSION)
HEARTBEAT = Heartbeat()

_encoder = msgspec.msgpack.Encoder()
_hello_decoder = msgspec.msgpack.Decoder(Hello)
_server_decoder: msgspec.msgpack.Decoder[ToServer] = msgspec.msgpack.Decoder(ToServer)
_client_decoder: msgspec.msgpack.Decoder[ToClient] = msgspec.msgpack.Decoder(ToClient)

_M = TypeVar("_M")


def encode(message: ToServer | ToClient) -> bytearray:
    """The frame of ``message``; raises FrameTooLarge."""
    frame = bytearray(LENGTH_PREFIX.size)
    _encoder.encode_into(message, frame, LENGTH_PREFIX.size)
    length = len(frame) - LENGTH_PREFIX.size
    if length > MAX_FRAME_BYTES:
        raise FrameTooLarge(f"a message of {length} bytes: at most {MAX_FRAME_BYTES}")
    LENGTH_PREFIX.pack_into(frame, 0, length)
    return frame


def decode_hello(body: bytes) -> Hello:
    """The first message of a client; raises WrongVersion where it speaks another one, or ProtocolError."""
    hello = _decode(_hello_decoder, body)
    if hello.version != PROTOCOL_VERSION:
        raise WrongVersion(f"protocol version {hello.version}: this generator speaks {PROTOCOL_VERSION}")
    return hello


def decode_to_server(body: bytes) -> ToServer:
    """What a client sent; raises ProtocolError."""
    return _decode(_server_decoder, body)


def decode_to_client(body: bytes) -> ToClient:
    """What a generator sent; raises ProtocolError."""
    return _decode(_client_decoder, body)


def _decode(decoder: msgspec.msgpack.Decoder[_M], body: bytes) -> _M:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        # msgspec quotes what it was given, at any length.
        raise ProtocolError(f"no message of this protocol: {shortened(str(error))}") from None
