#include "vexpress_client.h"

#include <grpcpp/grpcpp.h>

#include <utility>

#include "kserve.grpc.pb.h"
#include "messages.h"

namespace vexpress {

using namespace detail;

namespace {

constexpr int kMaxMessage = 64 << 20;  // bytes of one answer: a frame of the largest size has 12 MiB

using Stream = grpc::ClientReaderWriterInterface<inference::ModelInferRequest, inference::ModelStreamInferResponse>;

}  // namespace

struct Generation::State {
  grpc::ClientContext context;
  std::unique_ptr<Stream> stream;
  std::string address;
  ClipInfo info;
  std::string summary;
  int64_t received = 0;
  bool started = false;
  bool ended = false;

  ~State() {
    if (!stream || ended) return;
    context.TryCancel();
    drain();
  }

  // What still comes is dropped; how the stream ended.
  grpc::Status drain() {
    inference::ModelStreamInferResponse rest;
    while (stream->Read(&rest)) {
    }
    ended = true;
    return stream->Finish();
  }

  // The next answer that carries something.
  Answer read() {
    inference::ModelStreamInferResponse message;
    while (stream->Read(&message)) {
      if (!message.error_message().empty()) refuse(message.error_message());
      Answer answer(message.mutable_infer_response());
      if (!answer.empty()) return answer;
    }
    ended = true;
    broken(stream->Finish());
  }

  [[noreturn]] void broken(const grpc::Status& status) const {
    const std::string place =
        started ? "after " + std::to_string(received) + " answers" : std::string("before the first frame");
    switch (status.error_code()) {
      case grpc::StatusCode::OK:
        throw Error(ErrorCode::failed, address + ": the server ended the stream " + place);
      case grpc::StatusCode::CANCELLED:
        throw Error(ErrorCode::cancelled, address + ": the request was cancelled " + place);
      case grpc::StatusCode::DEADLINE_EXCEEDED:
        throw Error(ErrorCode::timeout, address + ": the client's own time limit passed " + place);
      case grpc::StatusCode::UNIMPLEMENTED:
        throw Error(ErrorCode::protocol, address + " is no Triton server: give the gRPC port of `vexpress serve`");
      case grpc::StatusCode::UNAVAILABLE:
        if (!started)
          throw Error(ErrorCode::unreachable, "no server answers at " + address + " (" + status.error_message() +
                                                  "): start one with `vexpress serve`, or check the address");
        break;
      default:
        break;
    }
    throw Error(ErrorCode::unreachable,
                address + ": the connection broke " + place + " (" + status.error_message() + ")");
  }

  // The next answer that is no summary; nothing after it, when the stream has ended.
  std::optional<Answer> next() {
    if (ended || !summary.empty()) return std::nullopt;
    Answer answer = read();
    if (!answer.has("summary")) return answer;
    summary = answer.text("summary");
    drain();
    return std::nullopt;
  }

  void check_order(int64_t index) {
    if (index != received)
      unlike("answer " + std::to_string(index) + " where " + std::to_string(received) + " was due");
    ++received;
  }
};

Generation::Generation(std::unique_ptr<State> state) : state_(std::move(state)) {}
Generation::~Generation() = default;
Generation::Generation(Generation&&) noexcept = default;
Generation& Generation::operator=(Generation&&) noexcept = default;

const ClipInfo& Generation::info() const { return state_->info; }
const std::string& Generation::summary() const { return state_->summary; }
void Generation::cancel() { state_->context.TryCancel(); }

std::optional<Frame> Generation::next() {
  std::optional<Answer> answer = state_->next();
  const ClipInfo& info = state_->info;
  if (!answer) {
    if (!state_->summary.empty() && state_->received != info.frames) unlike("a summary before the last frame");
    return std::nullopt;
  }
  Frame frame;
  frame.rgb = answer->bytes("frame", {info.height, info.width, 3});
  frame.index = answer->scalar<int64_t>("index", "INT64");
  frame.time = answer->scalar<double>("time", "FP64");
  frame.made_at = answer->scalar<double>("made_at", "FP64");
  if (frame.index >= info.frames) unlike("more frames than announced");
  state_->check_order(frame.index);
  return frame;
}

std::optional<Chunk> Generation::next_chunk() {
  std::optional<Answer> answer = state_->next();
  if (!answer) return std::nullopt;
  Chunk chunk;
  chunk.bytes = answer->piece("chunk");
  chunk.index = answer->scalar<int64_t>("index", "INT64");
  chunk.made_at = answer->scalar<double>("made_at", "FP64");
  state_->check_order(chunk.index);
  return chunk;
}

struct Client::State {
  std::string address;
  ClientOptions options;
  std::unique_ptr<inference::GRPCInferenceService::Stub> stub;
};

Client::Client(const std::string& address, ClientOptions options) : state_(std::make_unique<State>()) {
  if (address.empty() || address.find('/') != std::string::npos)
    throw Error(ErrorCode::invalid,
                "'" + address + "' is not the address of a server: give HOST:PORT of its gRPC port");
  for (const char character : options.token)
    if (character < ' ' || character > '~')
      throw Error(ErrorCode::invalid, "the token has characters that cannot travel in a header");
  const size_t colon = address.find(':', address.find(']') == std::string::npos ? 0 : address.find(']'));
  state_->address = colon == std::string::npos ? address + ":8001" : address;
  state_->options = std::move(options);
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessage);
  arguments.SetInt("grpc.enable_http_proxy", 0);
  const auto credentials =
      state_->options.tls ? grpc::SslCredentials({}) : grpc::InsecureChannelCredentials();
  state_->stub = inference::GRPCInferenceService::NewStub(
      grpc::CreateCustomChannel(state_->address, credentials, arguments));
}

Client::~Client() = default;
Client::Client(Client&&) noexcept = default;
Client& Client::operator=(Client&&) noexcept = default;

bool Client::ready(std::chrono::milliseconds timeout) const {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + timeout);
  inference::ServerReadyResponse response;
  return state_->stub->ServerReady(&context, {}, &response).ok() && response.ready();
}

Generation Client::generate(const Request& request) const {
  const inference::ModelInferRequest message = message_of(request);
  auto state = std::make_unique<Generation::State>();
  state->address = state_->address;
  if (state_->options.timeout.count() > 0)
    state->context.set_deadline(std::chrono::system_clock::now() + state_->options.timeout);
  if (!state_->options.token.empty()) state->context.AddMetadata("authorization", "Bearer " + state_->options.token);
  state->stream = state_->stub->ModelStreamInfer(&state->context);
  if (state->stream->Write(message)) state->stream->WritesDone();  // what went wrong is told when reading
  state->info = parse_info(state->read().text("info"));
  state->started = true;
  return Generation(std::move(state));
}

}  // namespace vexpress
