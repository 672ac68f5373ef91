// print_bindings BUNDLE: what a C++ host reads in a bundle's manifest before it loads a graph, see MANIFEST.md.
//
// One line for each graph and precision, then its inputs and outputs: name, type and shape, where a symbol such as "h"
// stands for one size throughout its graph.
#include <cstdio>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>

#include <nlohmann/json.hpp>

namespace {

constexpr int kSchemaVersion = 2;

std::string shape_of(const nlohmann::json& tensor) {
  std::string text;
  for (const auto& dimension : tensor.at("shape")) {
    if (!text.empty()) text += ", ";
    text += dimension.is_string() ? dimension.get<std::string>() : std::to_string(dimension.get<long long>());
  }
  return "[" + text + "]";
}

void print_side(const nlohmann::json& graph, const char* side, const char* arrow) {
  for (const auto& tensor : graph.at(side))
    std::printf("  %s %s %s %s\n", arrow, tensor.at("name").get<std::string>().c_str(),
                tensor.at("dtype").get<std::string>().c_str(), shape_of(tensor).c_str());
}

void print_bindings(const std::string& bundle) {
  std::ifstream file(bundle + "/manifest.json");
  if (!file) throw std::runtime_error("there is no manifest.json");
  const nlohmann::json manifest = nlohmann::json::parse(file);
  if (manifest.at("schema_version") != kSchemaVersion)
    throw std::runtime_error("schema version " + manifest.at("schema_version").dump() + ", expected " +
                             std::to_string(kSchemaVersion));
  const nlohmann::json& model = manifest.at("model");
  std::printf("%s: %dx%d, %d frames per window, by %s\n", bundle.c_str(), model.at("image_width").get<int>(),
              model.at("image_height").get<int>(), model.at("context_frames").get<int>(),
              manifest.at("producer").get<std::string>().c_str());
  for (const auto& graph : manifest.at("graphs")) {
    std::printf("%s %s: %s\n", graph.at("name").get<std::string>().c_str(),
                graph.at("precision").get<std::string>().c_str(), graph.at("path").get<std::string>().c_str());
    print_side(graph, "inputs", "<-");
    print_side(graph, "outputs", "->");
  }
}

}  // namespace

int main(int count, char** words) {
  if (count != 2) {
    std::fputs("usage: print_bindings BUNDLE\n", stderr);
    return 2;
  }
  try {
    print_bindings(words[1]);
    return 0;
  } catch (const std::exception& problem) {
    std::fprintf(stderr, "print_bindings: %s: %s\n", words[1], problem.what());
    return 2;
  }
}
