// vexpress_client: a clip from a server into a file, or onto standard output.
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "vexpress_client.h"

namespace {

constexpr char kUsage[] =
    "usage: vexpress_client --portrait IMAGE --audio SOUND --output FILE|- [options]\n"
    "  --server HOST:PORT  gRPC port of `vexpress serve` (default localhost:8001)\n"
    "  --kps TRACK         key-point track (.npy or .pth)\n"
    "  --settings JSON     the request's settings, for instance '{\"fps\": 25, \"preset\": \"fast\"}'\n"
    "  --format rgb|mp4    raw 8-bit RGB frames, or an MP4 that the server encodes (default: mp4 for NAME.mp4)\n"
    "  --token TOKEN       the server's token (default: VEXPRESS_TOKEN, which other users of the machine cannot read)\n"
    "  --timeout SECONDS   that the whole clip may take (default: as long as the server allows)\n"
    "  --tls               encrypted connection\n"
    "  --stats             print one line of JSON with latencies to standard error\n"
    "  --quiet             no other line there\n"
    "Exit status: 0 done, 2 refused or failed with a sentence, 129, 130 and 143 interrupted.\n";

struct Arguments {
  std::string server = "localhost:8001", portrait, audio, kps, settings = "{}", output, format, token;
  double timeout = 0;
  bool tls = false, stats = false, quiet = false;
};

[[noreturn]] void fail(const std::string& sentence) {
  throw vexpress::Error(vexpress::ErrorCode::invalid, sentence);
}

Arguments parse(int count, char** words) {
  Arguments arguments;
  if (const char* token = std::getenv("VEXPRESS_TOKEN")) arguments.token = token;
  std::string seconds;
  const std::pair<const char*, std::string*> values[] = {
      {"--server", &arguments.server}, {"--portrait", &arguments.portrait}, {"--audio", &arguments.audio},
      {"--kps", &arguments.kps},       {"--settings", &arguments.settings}, {"--output", &arguments.output},
      {"--format", &arguments.format}, {"--token", &arguments.token},       {"--timeout", &seconds},
  };
  const std::pair<const char*, bool*> switches[] = {
      {"--tls", &arguments.tls}, {"--stats", &arguments.stats}, {"--quiet", &arguments.quiet}};
  for (int i = 1; i < count; ++i) {
    const auto is = [&](const auto& flag) { return std::strcmp(flag.first, words[i]) == 0; };
    const auto value = std::find_if(std::begin(values), std::end(values), is);
    const auto toggle = std::find_if(std::begin(switches), std::end(switches), is);
    if (toggle != std::end(switches))
      *toggle->second = true;
    else if (value == std::end(values))
      fail(std::string("there is no flag ") + words[i] + ", see --help");
    else if (i + 1 == count)
      fail(std::string(words[i]) + " needs a value");
    else
      *value->second = words[++i];
  }
  if (arguments.portrait.empty() || arguments.audio.empty() || arguments.output.empty())
    fail("--portrait, --audio and --output are needed, see --help");
  if (arguments.format.empty()) {
    const std::string& name = arguments.output;
    arguments.format = name.size() > 4 && name.compare(name.size() - 4, 4, ".mp4") == 0 ? "mp4" : "rgb";
  }
  if (arguments.format != "rgb" && arguments.format != "mp4") fail("--format is rgb or mp4");
  if (!seconds.empty()) {
    char* end = nullptr;
    arguments.timeout = std::strtod(seconds.c_str(), &end);
    if (*end || !(arguments.timeout > 0 && arguments.timeout < 1e9)) fail("--timeout needs a number of seconds");
  }
  return arguments;
}

// A file that appears under its name only when it is whole, or standard output.
class Sink {
 public:
  explicit Sink(const std::string& path) : path_(path), temporary_(path + "." + std::to_string(getpid()) + ".tmp") {
    file_ = path == "-" ? stdout : std::fopen(temporary_.c_str(), "wb");
    if (!file_) fail("cannot write " + path + ": " + std::strerror(errno));
  }

  ~Sink() {
    if (!file_ || file_ == stdout) return;
    std::fclose(file_);
    std::remove(temporary_.c_str());
  }

  Sink(const Sink&) = delete;
  Sink& operator=(const Sink&) = delete;

  void write(const std::string& bytes) {
    if (std::fwrite(bytes.data(), 1, bytes.size(), file_) != bytes.size() || (file_ == stdout && std::fflush(file_)))
      fail("cannot write " + path_ + ": " + std::strerror(errno));
  }

  // For an end without unwinding, from any thread.
  void discard() const {
    if (file_ != stdout) std::remove(temporary_.c_str());
  }

  void finish() {
    if (file_ == stdout) return;
    const bool closed = std::fclose(file_) == 0;
    file_ = nullptr;
    if (closed && std::rename(temporary_.c_str(), path_.c_str()) == 0) return;
    const std::string reason = std::strerror(errno);
    std::remove(temporary_.c_str());
    fail("cannot write " + path_ + ": " + reason);
  }

 private:
  std::string path_, temporary_;
  std::FILE* file_ = nullptr;
};

// Ctrl-C, SIGTERM and a terminal that closes end the program at once, without a half-written file; the server sees the
// connection go. Under nohup it goes on.
class Interrupts {
 public:
  explicit Interrupts(const Sink& sink) {
    sigset_t signals;
    sigemptyset(&signals);
    for (const int number : {SIGINT, SIGTERM, kStop}) sigaddset(&signals, number);
    struct sigaction before;
    if (sigaction(SIGHUP, nullptr, &before) == 0 && before.sa_handler != SIG_IGN) sigaddset(&signals, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);  // also in the threads that gRPC starts from now on
    thread_ = std::thread([&sink, signals] {
      int number = 0;
      sigwait(&signals, &number);
      if (number == kStop) return;
      sink.discard();
      _exit(128 + number);
    });
  }

  ~Interrupts() {
    pthread_kill(thread_.native_handle(), kStop);
    thread_.join();
  }

  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;

 private:
  static constexpr int kStop = SIGUSR1;
  std::thread thread_;
};

// From a frame's making to its receipt, where both sides share a clock.
class Latencies {
 public:
  void received(double made_at) {
    const std::chrono::duration<double> now = std::chrono::steady_clock::now().time_since_epoch();
    seconds_.push_back(now.count() - made_at);
  }

  std::string json() const {
    if (seconds_.empty()) return "{\"answers\": 0}";
    std::vector<double> sorted = seconds_;
    std::sort(sorted.begin(), sorted.end());
    char text[200];
    std::snprintf(text, sizeof text, "{\"answers\": %zu, \"first_ms\": %.3f, \"median_ms\": %.3f, \"max_ms\": %.3f}",
                  sorted.size(), 1e3 * seconds_[0], 1e3 * sorted[sorted.size() / 2], 1e3 * sorted.back());
    return text;
  }

 private:
  std::vector<double> seconds_;
};

void run(const Arguments& arguments) {
  vexpress::ClientOptions options;
  options.token = arguments.token;
  options.timeout = std::chrono::milliseconds(static_cast<int64_t>(arguments.timeout * 1e3));
  options.tls = arguments.tls;
  vexpress::Request request =
      vexpress::load_request(arguments.portrait, arguments.audio, arguments.kps, arguments.settings);
  const bool mp4 = arguments.format == "mp4";
  request.output = mp4 ? vexpress::Output::mp4 : vexpress::Output::frames;
  Sink sink(arguments.output);
  const Interrupts interrupts(sink);
  Latencies latencies;
  vexpress::Generation clip = vexpress::Client(arguments.server, options).generate(request);
  const vexpress::ClipInfo& info = clip.info();
  if (!arguments.quiet)
    std::fprintf(stderr, "%lld frames of %dx%d, %lld/%lld frames/s, as %s\n", static_cast<long long>(info.frames),
                 info.width, info.height, static_cast<long long>(info.fps_numerator),
                 static_cast<long long>(info.fps_denominator), mp4 ? "MP4" : "raw video (rgb24)");
  if (mp4) {
    while (const auto chunk = clip.next_chunk()) {
      latencies.received(chunk->made_at);
      sink.write(chunk->bytes);
    }
  } else {
    while (const auto frame = clip.next()) {
      latencies.received(frame->made_at);
      sink.write(frame->rgb);
    }
  }
  sink.finish();
  if (arguments.stats) std::fprintf(stderr, "%s\n", latencies.json().c_str());
}

}  // namespace

int main(int count, char** words) {
  if (count == 2 && std::strcmp(words[1], "--help") == 0) {
    std::fputs(kUsage, stdout);
    return 0;
  }
  try {
    run(parse(count, words));
    return 0;
  } catch (const vexpress::Error& error) {
    std::fprintf(stderr, "vexpress_client: %s: %s\n", vexpress::name_of(error.code()), error.what());
    return 2;
  }
}
