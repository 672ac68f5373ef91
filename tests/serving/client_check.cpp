// What the program vexpress_client does not use of its library: client_check HOST:PORT of a server that never ends.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <utility>

#include "vexpress_client.h"

namespace {

void expect(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "not so: %s\n", what);
  std::exit(1);
}

vexpress::Request request() {
  vexpress::Request request;
  request.portrait = "a portrait";
  request.audio = "speech";
  return request;
}

void readiness(const vexpress::Client& client) {
  expect(client.ready(), "a server that is there is ready");
  expect(!vexpress::Client("127.0.0.1:1").ready(std::chrono::milliseconds(500)), "one that is not there is not");
}

void cancelled_from_another_thread(const vexpress::Client& client) {
  vexpress::Generation clip = client.generate(request());
  std::thread other([&clip] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    clip.cancel();
  });
  try {
    while (clip.next()) {
    }
    expect(false, "next throws after cancel");
  } catch (const vexpress::Error& error) {
    expect(error.code() == vexpress::ErrorCode::cancelled, "the code is cancelled");
  }
  other.join();
}

void two_clips_at_once_and_both_left_early(const vexpress::Client& client) {
  vexpress::Generation one = client.generate(request()), other = client.generate(request());
  expect(one.next()->index == 0 && other.next()->index == 0 && one.next()->index == 1, "both run");
  vexpress::Generation moved = std::move(one);
  expect(moved.next()->index == 2, "a clip can be moved");
  expect(moved.summary().empty(), "no summary before the end");
}

void a_clip_outlives_its_client(const std::string& address) {
  vexpress::Generation clip = vexpress::Client(address).generate(request());
  expect(clip.next()->rgb.size() == 3u * static_cast<unsigned>(clip.info().width * clip.info().height), "a frame");
}

}  // namespace

int main(int count, char** words) {
  expect(count == 2, "an address is given");
  const vexpress::Client client(words[1]);
  readiness(client);
  cancelled_from_another_thread(client);
  two_clips_at_once_and_both_left_early(client);
  a_clip_outlives_its_client(words[1]);
  std::puts("ok");
}
