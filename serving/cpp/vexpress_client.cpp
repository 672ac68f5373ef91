#include "vexpress_client.h"

#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <utility>
#include <vector>

#include "kserve.grpc.pb.h"

namespace vexpress {
namespace {

constexpr int kProtocolVersion = 1;
constexpr int kMaxMessage = 64 << 20;  // bytes of one answer: a frame of the largest size has 12 MiB
constexpr int kMaxSide = 1 << 14;
constexpr char kModel[] = "vexpress";

using Json = google::protobuf::Struct;
using Stream = grpc::ClientReaderWriterInterface<inference::ModelInferRequest, inference::ModelStreamInferResponse>;

constexpr std::pair<ErrorCode, const char*> kNames[] = {
    {ErrorCode::invalid, "invalid"},       {ErrorCode::busy, "busy"},
    {ErrorCode::unauthorized, "unauthorized"}, {ErrorCode::timeout, "timeout"},
    {ErrorCode::failed, "failed"},         {ErrorCode::unreachable, "unreachable"},
    {ErrorCode::cancelled, "cancelled"},   {ErrorCode::protocol, "protocol"},
};
constexpr size_t kServerCodes = 5;  // the first ones are the protocol's, the others the client's own

std::optional<Json> parse_object(const std::string& text) {
  Json object;
  if (!google::protobuf::util::JsonStringToMessage(text, &object).ok()) return std::nullopt;
  return object;
}

std::optional<double> number(const Json& object, const std::string& name) {
  const auto found = object.fields().find(name);
  if (found == object.fields().end() || found->second.kind_case() != google::protobuf::Value::kNumberValue)
    return std::nullopt;
  return found->second.number_value();
}

// `object` with one more member, whose value is JSON. Numbers are left as they were written.
std::string with_member(const std::string& object, const std::string& name, const std::string& value) {
  const size_t brace = object.find('{') + 1;
  const bool empty = object[object.find_first_not_of(" \t\r\n", brace)] == '}';
  return object.substr(0, brace) + '"' + name + "\": " + value + (empty ? "" : ", ") + object.substr(brace);
}

std::string content_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string content{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file || content.empty()) throw Error(ErrorCode::invalid, path + " cannot be read, or is empty");
  return content;
}

[[noreturn]] void refuse(const std::string& text) {
  // Triton may put words before the code.
  size_t start = std::string::npos;
  const std::pair<ErrorCode, const char*>* code = nullptr;
  for (size_t i = 0; i < kServerCodes; ++i) {
    const size_t found = text.find(std::string(kNames[i].second) + ": ");
    if (found < start) start = found, code = &kNames[i];
  }
  if (!code) throw Error(ErrorCode::failed, text);
  throw Error(code->first, text.substr(start + std::strlen(code->second) + 2));
}

[[noreturn]] void unlike(const std::string& what) {
  throw Error(ErrorCode::protocol, "the server speaks another protocol (" + what + "): use the same version on both");
}

struct Tensor {
  std::string datatype;
  std::vector<int64_t> shape;
  std::string bytes;
};

// The tensors of an answer; their bytes are moved out of it.
class Answer {
 public:
  explicit Answer(inference::ModelInferResponse* response) {
    if (response->outputs_size() != response->raw_output_contents_size()) unlike("tensors without their bytes");
    for (int i = 0; i < response->outputs_size(); ++i) {
      auto* output = response->mutable_outputs(i);
      tensors_.emplace_back(output->name(),
                            Tensor{output->datatype(),
                                   {output->shape().begin(), output->shape().end()},
                                   std::move(*response->mutable_raw_output_contents(i))});
    }
  }

  bool empty() const { return tensors_.empty(); }

  bool has(const std::string& name) const { return find(name) != tensors_.end(); }

  // The text of a BYTES tensor with one element: a little-endian length, then its bytes.
  std::string text(const std::string& name) {
    const Tensor& tensor = get(name, "BYTES");
    uint32_t length = 0;
    if (tensor.bytes.size() < sizeof length) unlike(name);
    std::memcpy(&length, tensor.bytes.data(), sizeof length);
    if (length != tensor.bytes.size() - sizeof length) unlike(name);
    return tensor.bytes.substr(sizeof length);
  }

  template <typename Number>
  Number scalar(const std::string& name, const char* datatype) {
    const Tensor& tensor = get(name, datatype);
    Number value{};
    if (tensor.bytes.size() != sizeof value) unlike(name);
    std::memcpy(&value, tensor.bytes.data(), sizeof value);
    return value;
  }

  std::string bytes(const std::string& name, const std::vector<int64_t>& shape) {
    Tensor& tensor = get(name, "UINT8");
    uint64_t size = 1;
    for (const int64_t side : shape) size *= static_cast<uint64_t>(side);
    if (tensor.shape != shape || tensor.bytes.size() != size) unlike(name + " of another shape");
    return std::move(tensor.bytes);
  }

  std::string piece(const std::string& name) {
    return bytes(name, {static_cast<int64_t>(get(name, "UINT8").bytes.size())});
  }

 private:
  using Tensors = std::vector<std::pair<std::string, Tensor>>;

  Tensors::const_iterator find(const std::string& name) const {
    return std::find_if(tensors_.begin(), tensors_.end(), [&](const auto& tensor) { return tensor.first == name; });
  }

  Tensor& get(const std::string& name, const char* datatype) {
    const auto found = find(name);
    if (found == tensors_.end() || found->second.datatype != datatype) unlike("no " + name);
    return tensors_[static_cast<size_t>(found - tensors_.begin())].second;
  }

  Tensors tensors_;
};

ClipInfo parse_info(const std::string& text) {
  const std::optional<Json> object = parse_object(text);
  if (!object) unlike("no description of the clip");
  const auto whole = [&](const char* name, double most) {
    const std::optional<double> value = number(*object, name);
    if (!value || *value < 1 || *value > most || std::floor(*value) != *value) unlike(std::string("no ") + name);
    return *value;
  };
  if (number(*object, "version") != kProtocolVersion) unlike("another version");
  ClipInfo info;
  info.frames = static_cast<int64_t>(whole("frames", 1e15));
  info.width = static_cast<int>(whole("width", kMaxSide));
  info.height = static_cast<int>(whole("height", kMaxSide));
  const std::optional<double> fps = number(*object, "fps");
  const auto fraction = object->fields().find("fps_fraction");
  if (!fps || !(*fps > 0) || fraction == object->fields().end()) unlike("no frame rate");
  info.fps = *fps;
  long long numerator = 0, denominator = 0;
  if (std::sscanf(fraction->second.string_value().c_str(), "%lld/%lld", &numerator, &denominator) != 2 ||
      numerator < 1 || denominator < 1)
    unlike("no frame rate");
  info.fps_numerator = numerator;
  info.fps_denominator = denominator;
  return info;
}

void add_input(inference::ModelInferRequest* message, const char* name, const std::string& content) {
  auto* input = message->add_inputs();
  input->set_name(name);
  input->set_datatype("UINT8");
  input->add_shape(static_cast<int64_t>(content.size()));
  message->add_raw_input_contents(content);
}

inference::ModelInferRequest message_of(const Request& request) {
  if (request.portrait.empty() || request.audio.empty())
    throw Error(ErrorCode::invalid, "a clip needs a portrait and speech");
  const std::optional<Json> settings = parse_object(request.settings);
  if (!settings) throw Error(ErrorCode::invalid, "the settings are no JSON object");
  if (settings->fields().count("output")) throw Error(ErrorCode::invalid, "\"output\" is not given as a setting");
  inference::ModelInferRequest message;
  message.set_model_name(kModel);
  add_input(&message, "portrait", request.portrait);
  add_input(&message, "audio", request.audio);
  if (!request.kps.empty()) add_input(&message, "kps", request.kps);
  const std::string text =
      with_member(request.settings, "output", request.output == Output::mp4 ? "\"mp4\"" : "\"frames\"");
  auto* input = message.add_inputs();
  input->set_name("settings");
  input->set_datatype("BYTES");
  input->add_shape(1);
  const auto length = static_cast<uint32_t>(text.size());
  message.add_raw_input_contents(std::string(reinterpret_cast<const char*>(&length), sizeof length) + text);
  return message;
}

}  // namespace

const char* name_of(ErrorCode code) {
  for (const auto& [known, name] : kNames)
    if (known == code) return name;
  return "unknown";
}

Request load_request(const std::string& portrait, const std::string& audio, const std::string& kps,
                     const std::string& settings) {
  Request request;
  request.portrait = content_of(portrait);
  request.audio = content_of(audio);
  request.settings = settings;
  if (kps.empty()) return request;
  request.kps = content_of(kps);
  std::ifstream sidecar(kps + ".json");
  const std::optional<Json> given = parse_object(settings);
  if (!sidecar || !given || request.kps.compare(0, 6, "\x93NUMPY") != 0) return request;
  const auto track = parse_object({std::istreambuf_iterator<char>(sidecar), std::istreambuf_iterator<char>()});
  if (!track) throw Error(ErrorCode::invalid, kps + ".json is not readable");
  const auto width = number(*track, "width"), height = number(*track, "height"), fps = number(*track, "fps");
  if (width && height && !given->fields().count("kps_size"))
    request.settings = with_member(request.settings, "kps_size",
                                   '"' + std::to_string(std::llround(*width)) + ',' +
                                       std::to_string(std::llround(*height)) + '"');
  if (fps && !given->fields().count("kps_fps")) {
    char digits[32];
    std::snprintf(digits, sizeof digits, "%.17g", *fps);
    request.settings = with_member(request.settings, "kps_fps", digits);
  }
  return request;
}

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
