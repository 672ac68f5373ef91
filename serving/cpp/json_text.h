// JSON objects: of settings, of a track's sidecar, of a clip's description.
#ifndef VEXPRESS_JSON_TEXT_H
#define VEXPRESS_JSON_TEXT_H

#include <google/protobuf/struct.pb.h>

#include <optional>
#include <string>

namespace vexpress::detail {

using Json = google::protobuf::Struct;

// Nothing where the text is no JSON object.
std::optional<Json> parse_object(const std::string& text);

// Nothing where there is no such member, or where it is no number.
std::optional<double> number(const Json& object, const std::string& name);

// `object`, a JSON object, with one more member, whose value is JSON. Numbers are left as they were written.
std::string with_member(const std::string& object, const std::string& name, const std::string& value);

}  // namespace vexpress::detail

#endif
