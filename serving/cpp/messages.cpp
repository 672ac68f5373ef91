#include "messages.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iterator>
#include <optional>

#include "json_text.h"

namespace vexpress {
namespace {

constexpr int kProtocolVersion = 1;
constexpr int kMaxSide = 1 << 14;
constexpr char kModel[] = "vexpress";

constexpr std::pair<ErrorCode, const char*> kNames[] = {
    {ErrorCode::invalid, "invalid"},       {ErrorCode::busy, "busy"},
    {ErrorCode::unauthorized, "unauthorized"}, {ErrorCode::timeout, "timeout"},
    {ErrorCode::failed, "failed"},         {ErrorCode::unreachable, "unreachable"},
    {ErrorCode::cancelled, "cancelled"},   {ErrorCode::protocol, "protocol"},
};
constexpr size_t kServerCodes = 5;  // the first ones are the protocol's, the others the client's own

void add_input(inference::ModelInferRequest* message, const char* name, const std::string& content) {
  auto* input = message->add_inputs();
  input->set_name(name);
  input->set_datatype("UINT8");
  input->add_shape(static_cast<int64_t>(content.size()));
  message->add_raw_input_contents(content);
}

}  // namespace

const char* name_of(ErrorCode code) {
  for (const auto& [known, name] : kNames)
    if (known == code) return name;
  return "unknown";
}

namespace detail {

void refuse(const std::string& text) {
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

void unlike(const std::string& what) {
  throw Error(ErrorCode::protocol, "the server speaks another protocol (" + what + "): use the same version on both");
}

Answer::Answer(inference::ModelInferResponse* response) {
  if (response->outputs_size() != response->raw_output_contents_size()) unlike("tensors without their bytes");
  for (int i = 0; i < response->outputs_size(); ++i) {
    auto* output = response->mutable_outputs(i);
    tensors_.emplace_back(output->name(),
                          Tensor{output->datatype(),
                                 {output->shape().begin(), output->shape().end()},
                                 std::move(*response->mutable_raw_output_contents(i))});
  }
}

bool Answer::has(const std::string& name) const {
  return std::any_of(tensors_.begin(), tensors_.end(), [&](const auto& tensor) { return tensor.first == name; });
}

// One element of BYTES is a little-endian length, then its bytes.
std::string Answer::text(const std::string& name) {
  const std::string& bytes = get(name, "BYTES").bytes;
  uint32_t length = 0;
  if (bytes.size() < sizeof length) unlike(name);
  std::memcpy(&length, bytes.data(), sizeof length);
  if (length != bytes.size() - sizeof length) unlike(name);
  return bytes.substr(sizeof length);
}

std::string Answer::bytes(const std::string& name, const std::vector<int64_t>& shape) {
  Tensor& tensor = get(name, "UINT8");
  uint64_t size = 1;
  for (const int64_t side : shape) size *= static_cast<uint64_t>(side);
  if (tensor.shape != shape || tensor.bytes.size() != size) unlike(name + " of another shape");
  return std::move(tensor.bytes);
}

std::string Answer::piece(const std::string& name) {
  return bytes(name, {static_cast<int64_t>(get(name, "UINT8").bytes.size())});
}

Answer::Tensor& Answer::get(const std::string& name, const char* datatype) {
  const auto found =
      std::find_if(tensors_.begin(), tensors_.end(), [&](const auto& tensor) { return tensor.first == name; });
  if (found == tensors_.end() || found->second.datatype != datatype) unlike("no " + name);
  return found->second;
}

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

}  // namespace detail
}  // namespace vexpress
