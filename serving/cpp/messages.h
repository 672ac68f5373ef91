// A request as the message that asks for it, and the tensors of an answer. What is not as agreed throws Error.
#ifndef VEXPRESS_MESSAGES_H
#define VEXPRESS_MESSAGES_H

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "kserve.pb.h"
#include "vexpress_client.h"

namespace vexpress::detail {

inference::ModelInferRequest message_of(const Request& request);

ClipInfo parse_info(const std::string& text);

// A server's refusal as an Error.
[[noreturn]] void refuse(const std::string& text);

// A server of another version as an Error.
[[noreturn]] void unlike(const std::string& what);

// The tensors of an answer; their bytes are moved out of it.
class Answer {
 public:
  explicit Answer(inference::ModelInferResponse* response);

  bool empty() const { return tensors_.empty(); }
  bool has(const std::string& name) const;

  // The text of a BYTES tensor with one element.
  std::string text(const std::string& name);

  template <typename Number>
  Number scalar(const std::string& name, const char* datatype) {
    const std::string& bytes = get(name, datatype).bytes;
    Number value{};
    if (bytes.size() != sizeof value) unlike(name);
    std::memcpy(&value, bytes.data(), sizeof value);
    return value;
  }

  // The bytes of a UINT8 tensor: of this shape, or of one dimension.
  std::string bytes(const std::string& name, const std::vector<int64_t>& shape);
  std::string piece(const std::string& name);

 private:
  struct Tensor {
    std::string datatype;
    std::vector<int64_t> shape;
    std::string bytes;
  };

  Tensor& get(const std::string& name, const char* datatype);

  std::vector<std::pair<std::string, Tensor>> tensors_;
};

}  // namespace vexpress::detail

#endif
