"""The messages of KServe v2's gRPC service that a streaming client needs, without generated code.

They are wire-compatible with `grpc_service.proto` of Triton: the same package, names and field numbers, of which only
what is used is declared. They lie in a pool of their own, so that a program may load Triton's own client as well.
"""

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

PACKAGE = "inference"
STREAM_METHOD = f"/{PACKAGE}.GRPCInferenceService/ModelStreamInfer"
_TYPES = {
    "bool": FieldDescriptorProto.TYPE_BOOL,
    "bytes": FieldDescriptorProto.TYPE_BYTES,
    "int64": FieldDescriptorProto.TYPE_INT64,
    "string": FieldDescriptorProto.TYPE_STRING,
}
_TENSOR = "name:1:string datatype:2:string shape:3:int64*"
# message -> its fields as name:number:type, with * where repeated.
_MESSAGES = {
    "ModelInferRequest.InferInputTensor": _TENSOR,
    "ModelInferResponse.InferOutputTensor": _TENSOR,
    "ModelInferRequest": "model_name:1:string id:3:string inputs:5:ModelInferRequest.InferInputTensor* "
    "raw_input_contents:7:bytes*",
    "ModelInferResponse": "model_name:1:string id:3:string outputs:5:ModelInferResponse.InferOutputTensor* "
    "raw_output_contents:6:bytes*",
    "ModelStreamInferResponse": "error_message:1:string infer_response:2:ModelInferResponse",
}


def _file() -> FileDescriptorProto:
    file = FileDescriptorProto(name="vexpress_kserve.proto", package=PACKAGE, syntax="proto3")
    for name in sorted(_MESSAGES, key=lambda name: name.count(".")):
        outer, _, inner = name.rpartition(".")
        parent = next(m for m in file.message_type if m.name == outer).nested_type if outer else file.message_type
        message = parent.add(name=inner)
        for declared in _MESSAGES[name].split():
            field, number, kind = declared.split(":")
            repeated = kind.endswith("*")
            kind = kind.rstrip("*")
            added = message.field.add(
                name=field,
                number=int(number),
                label=FieldDescriptorProto.LABEL_REPEATED if repeated else FieldDescriptorProto.LABEL_OPTIONAL,
                type=_TYPES.get(kind, FieldDescriptorProto.TYPE_MESSAGE),
            )
            if kind not in _TYPES:
                added.type_name = f".{PACKAGE}.{kind}"
    return file


POOL = DescriptorPool()
POOL.AddSerializedFile(_file().SerializeToString())
ModelInferRequest, ModelStreamInferResponse = (
    GetMessageClass(POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))
    for name in ("ModelInferRequest", "ModelStreamInferResponse")
)
