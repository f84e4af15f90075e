"""moeray.v1.InferenceService: what clients call. Answers themselves are made in ``answers.py``.

Handlers get a ``Call`` from the interceptor in place of grpc's context, and raise MoerayError.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager

from moeray.cluster.answers import Answers
from moeray.cluster.catalogue import Catalogue, ServedModel
from moeray.cluster.errors import FieldViolation, InvalidRequest
from moeray.cluster.interceptors import Call
from moeray.cluster.tokenizer import HarmonyTokenizer
from moeray.cluster.whole_answer import WholeAnswer
from moeray.v1 import inference_pb2 as pb


class InferenceService:
    """The six methods of the public service."""

    def __init__(
        self,
        answers: Answers,
        catalogue: Catalogue,
        tokenizer: HarmonyTokenizer,
        *,
        gateway_id: str,
        version: str,
    ) -> None:
        self._answers = answers
        self._catalogue = catalogue
        self._tokenizer = tokenizer
        self._gateway_id = gateway_id
        self._version = version

    async def Generate(
        self, request: pb.GenerateRequest, call: Call
    ) -> AsyncIterator[pb.GenerateResponse]:
        async with aclosing(self._answers.stream(request, call)) as events:
            async for event in events:
                yield event

    async def Complete(self, request: pb.CompleteRequest, call: Call) -> pb.CompleteResponse:
        answer = WholeAnswer(call.request_id)
        with _inside("generation"):
            async with aclosing(self._answers.stream(request.generation, call)) as events:
                async for event in events:
                    answer.add(event)
        return answer.response

    async def CountTokens(
        self, request: pb.CountTokensRequest, call: Call
    ) -> pb.CountTokensResponse:
        with _inside("generation"):
            prompt = await self._answers.render(request.generation, call)
        text = self._tokenizer.encoding.decode(prompt.token_ids) if request.include_prompt else ""
        return pb.CountTokensResponse(
            prompt_tokens=len(prompt.token_ids),
            context_length=prompt.model.context_length,
            prompt=text,
        )

    async def ListModels(self, request: pb.ListModelsRequest, call: Call) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[_model(model) for model in self._catalogue.models])

    async def GetModel(self, request: pb.GetModelRequest, call: Call) -> pb.GetModelResponse:
        if not request.name:
            raise InvalidRequest([FieldViolation("name", "required")])
        return pb.GetModelResponse(model=_model(self._catalogue.find(request.name)))

    async def GetServerInfo(
        self, request: pb.GetServerInfoRequest, call: Call
    ) -> pb.GetServerInfoResponse:
        return pb.GetServerInfoResponse(
            version=self._version,
            gateway_id=self._gateway_id,
            engines=sum(model.engines for model in self._catalogue.models),
            running_requests=self._answers.running,
        )


@contextmanager
def _inside(field: str) -> Iterator[None]:
    """Errors of a message inside the request name their path from the outside."""
    try:
        yield
    except InvalidRequest as error:
        raise InvalidRequest(
            [FieldViolation(f"{field}.{v.field}", v.description) for v in error.violations]
        ) from error


def _model(model: ServedModel) -> pb.Model:
    return pb.Model(
        name=model.name,
        context_length=model.context_length,
        vocabulary_size=model.vocabulary_size,
        engines=model.engines,
        ranks=model.ranks,
        default_max_output_tokens=model.default_max_output_tokens,
    )
