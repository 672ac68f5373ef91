// A request made of files.
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>

#include "json_text.h"
#include "vexpress_client.h"

namespace vexpress {

using namespace detail;

namespace {

std::string content_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string content{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file || content.empty()) throw Error(ErrorCode::invalid, path + " cannot be read, or is empty");
  return content;
}

}  // namespace

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

}  // namespace vexpress
