// A C++17 client of `vexpress serve`: a portrait and speech go out, frames come back as they are made.
//
//   vexpress::Client client("localhost:8001");
//   vexpress::Generation clip = client.generate(vexpress::load_request("portrait.jpg", "speech.wav"));
//   while (std::optional<vexpress::Frame> frame = clip.next())
//     show(frame->time, frame->rgb);  // 8-bit RGB, row by row
//
// Everything that fails throws vexpress::Error. Destroying a Generation early stops the server's work. A Generation
// belongs to one thread, except for cancel(); a Client may be used by several, and need not outlive its Generations.
#ifndef VEXPRESS_CLIENT_H
#define VEXPRESS_CLIENT_H

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

namespace vexpress {

enum class ErrorCode {
  invalid,       // inputs or settings that cannot be used, here or there
  busy,          // the server's queue is full, or it is ending: the same request may succeed later
  unauthorized,  // no token, or another one
  timeout,       // the server's time limit, or the client's own
  failed,        // the server's fault: a worker died
  unreachable,   // nothing answers at the address, or the connection broke
  cancelled,     // by Generation::cancel
  protocol,      // the server speaks another version
};

// The protocol's word for a code.
const char* name_of(ErrorCode code);

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& sentence) : std::runtime_error(sentence), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

enum class Output { frames, mp4 };

// One clip. `portrait`, `audio` and `kps` (empty: none) are the contents of files; `settings` is a JSON object of the
// request's fields, for instance {"fps": 25, "seed": 7, "preset": "fast"}.
struct Request {
  std::string portrait;
  std::string audio;
  std::string kps;
  std::string settings = "{}";
  Output output = Output::frames;
};

// A request made of files. Of a key-point track that is an .npy, the frame size and rate that stand in NAME.npy.json
// become settings. Throws Error (invalid) for files that cannot be read.
Request load_request(const std::string& portrait, const std::string& audio, const std::string& kps = "",
                     const std::string& settings = "{}");

// What a clip will be. The frame rate is also given as a fraction.
struct ClipInfo {
  int64_t frames = 0;
  int width = 0;
  int height = 0;
  double fps = 0;
  int64_t fps_numerator = 0;
  int64_t fps_denominator = 1;
};

// One finished frame: 3 * width * height bytes of RGB; `time` is seconds in the clip, `made_at` the server's
// CLOCK_MONOTONIC in seconds when the frame was made: on one machine, std::chrono::steady_clock's.
struct Frame {
  int64_t index = 0;
  double time = 0;
  double made_at = 0;
  std::string rgb;
};

// The next piece of a fragmented MP4: all of them in order are the file.
struct Chunk {
  int64_t index = 0;
  double made_at = 0;
  std::string bytes;
};

// A clip that a server makes. Of what is not taken only a few frames wait here; the server keeps the others.
class Generation {
 public:
  ~Generation();
  Generation(Generation&&) noexcept;
  Generation& operator=(Generation&&) noexcept;

  const ClipInfo& info() const;

  // The next frame (Output::frames), or nothing after the last one.
  std::optional<Frame> next();

  // The next piece (Output::mp4), or nothing after the last one.
  std::optional<Chunk> next_chunk();

  // The server's closing figures as JSON; empty before the last frame or piece was taken.
  const std::string& summary() const;

  // Stops the server's work, from any thread; `next` throws Error (cancelled) then.
  void cancel();

 private:
  friend class Client;
  struct State;
  explicit Generation(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

struct ClientOptions {
  std::string token;                     // empty: none
  std::chrono::milliseconds timeout{0};  // that a whole clip may take; 0: as long as the server allows
  bool tls = false;
};

class Client {
 public:
  // `address`: HOST or HOST:PORT of the server's gRPC port (default 8001). Nothing is connected yet.
  explicit Client(const std::string& address, ClientOptions options = {});
  ~Client();
  Client(Client&&) noexcept;
  Client& operator=(Client&&) noexcept;

  // Whether a server is there and ready.
  bool ready(std::chrono::milliseconds timeout = std::chrono::seconds(5)) const;

  // Sends a request and waits until the server has taken it up and read its inputs.
  Generation generate(const Request& request) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace vexpress

#endif
