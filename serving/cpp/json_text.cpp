#include "json_text.h"

#include <google/protobuf/util/json_util.h>

namespace vexpress::detail {

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

std::string with_member(const std::string& object, const std::string& name, const std::string& value) {
  const size_t brace = object.find('{') + 1;
  const bool empty = object[object.find_first_not_of(" \t\r\n", brace)] == '}';
  return object.substr(0, brace) + '"' + name + "\": " + value + (empty ? "" : ", ") + object.substr(brace);
}

}  // namespace vexpress::detail
