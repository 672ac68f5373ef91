// Streams and events of a stand-in GPU. Work waits in its stream and runs in an order that a real GPU might choose: now
// everything at once, now nothing until somebody looks, now one stream far ahead of the others or behind them. A missing
// wait, or staging memory that is reused too early, shows as wrong numbers.
#pragma once

#include <chrono>
#include <csetjmp>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "memory.h"

namespace stand_in {

struct Context {
    int device = 0;
    int retained = 0;
    Arena memory;
    int failure = 0;  // once work has failed, every call that uses the context gives this code
};

struct Item {
    std::string name;
    std::shared_ptr<Context> context;
    std::function<void()> run;
    std::function<bool()> ready = nullptr;  // null: at once
};

using Graph = std::vector<Item>;

struct Stream {
    std::shared_ptr<Context> context;
    std::deque<Item> queue;
    std::shared_ptr<Graph> captured;  // null: it does not capture
    std::thread::id capturing_thread;
    bool spoilt = false;  // the capture is void
};

// A point of a stream that an event was recorded at.
struct Mark {
    bool reached = false;
    std::chrono::steady_clock::time_point when;
};

struct Event {
    std::shared_ptr<Context> context;
    bool timed = false;
    std::shared_ptr<Mark> mark;  // of the last record; null: never recorded
};

// Where a fault of running work ends up: at `place`, with the code it stands for.
struct Trap {
    sigjmp_buf place;
    volatile bool armed = false;
    std::string running;
};

class Queues {
public:
    Queues() : null_(std::make_shared<Stream>()) { streams_.push_back(null_); }

    Trap trap;
    std::function<void(const Item &, int)> failed;

    void seed(std::uint64_t seed) {
        random_.seed(seed);
        change();
    }
    std::mt19937_64 &random() { return random_; }
    std::shared_ptr<Stream> null() const { return null_; }
    void add(const std::shared_ptr<Stream> &stream) { streams_.push_back(stream); }

    void enqueue(Stream &stream, Item item) {
        if (stream.captured) {
            stream.captured->push_back(std::move(item));
            return;
        }
        stream.queue.push_back(std::move(item));
        if (below(64) == 0) change();
        if (mood_ == Mood::eager) run(~0u);
        if (mood_ == Mood::mixed) run(below(4));
        if (mood_ == Mood::favourite && !stream.queue.empty() && below(8) != 0) run_of(stream, ~0u);
    }

    // Somebody looks whether something is done: a little more is, or not.
    void look() {
        static constexpr unsigned counts[] = {0, 1, 3, 30};
        run(counts[below(4)]);
    }

    // Run what is enqueued, in any order, until `done` says so or nothing is left that could run.
    void until(const std::function<bool()> &done) {
        while (!done() && run(1) != 0) {
        }
    }

    bool running() const { return running_; }

private:
    enum class Mood { eager, lazy, mixed, favourite };

    void change() {
        mood_ = static_cast<Mood>(below(4));
        last_ = below(2) == 0 ? nullptr : streams_[below(static_cast<unsigned>(streams_.size()))].get();
    }

    unsigned below(unsigned limit) { return static_cast<unsigned>(random_() % limit); }

    static bool ready(const Stream &stream) {
        return !stream.queue.empty() && (!stream.queue.front().ready || stream.queue.front().ready());
    }

    // Run up to `most` items of streams chosen at random; how many there were.
    unsigned run(unsigned most) {
        unsigned done = 0;
        while (done < most && !running_) {
            std::vector<Stream *> able;
            for (const auto &stream : streams_)
                if (ready(*stream)) able.push_back(stream.get());
            if (able.empty()) break;
            if (able.size() > 1) std::erase(able, last_);
            done += run_of(*able[below(static_cast<unsigned>(able.size()))], 1);
        }
        std::erase_if(streams_, [this](const auto &s) { return s != null_ && s.use_count() == 1 && s->queue.empty(); });
        return done;
    }

    unsigned run_of(Stream &stream, unsigned most) {
        unsigned done = 0;
        for (; done < most && !running_ && ready(stream); ++done) {
            const Item item = std::move(stream.queue.front());
            stream.queue.pop_front();
            running_ = true;
            trap.running = item.name;
            const int code = item.context && item.context->failure ? 0 : guarded(item);
            running_ = false;
            if (code != 0) failed(item, code);
        }
        return done;
    }

    int guarded(const Item &item) {
        const int code = sigsetjmp(trap.place, 1);
        if (code == 0) item.run();
        trap.armed = false;
        return code;
    }

    std::mt19937_64 random_{0};
    Mood mood_ = Mood::mixed;
    const Stream *last_ = nullptr;  // runs when no other can
    bool running_ = false;
    std::shared_ptr<Stream> null_;
    std::vector<std::shared_ptr<Stream>> streams_;
};

}  // namespace stand_in
