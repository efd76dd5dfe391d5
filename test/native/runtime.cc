// runtime.cc - the command queue, lifetimes and failures of csrc/runtime over a backend that really is asynchronous:
// each stream has a thread of its own that runs behind, as a GPU does. Built with ThreadSanitizer.
//
// The backend notices every use of memory that has been released. Prints "N checks, F failures".
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <future>
#include <random>
#include <set>
#include <thread>

#include "runtime/commands.h"
#include "runtime/device.h"

namespace {

using namespace mla;
using namespace mla::runtime;

std::atomic<int> g_checks{0};
std::atomic<int> g_failures{0};

void expect(bool condition, const char* what) {
  ++g_checks;
  if (condition) return;
  if (++g_failures <= 20) std::fprintf(stderr, "failed: %s\n", what);
}

/// What the fake device's memory and threads share.
struct World {
  std::mutex mutex;
  std::set<void*> live;
  std::atomic<int> streams{0};
  std::atomic<int> graphs{0};
  std::atomic<bool> lost{false};
  std::atomic<bool> hangs{false};

  void touch(void* data) {
    if (lost) return;  // nothing runs on a lost device any more
    std::lock_guard lock(mutex);
    expect(live.count(data) == 1, "work touches memory that has been released");
  }
};

/// Runs closures in order, on its own thread, late.
class FakeStream : public BackendStream {
 public:
  explicit FakeStream(World& world, uint32_t seed) : world_(world), random_(seed), thread_([this] { loop(); }) {
    ++world_.streams;
  }
  ~FakeStream() override {
    push(nullptr);
    thread_.join();
    --world_.streams;
  }
  void push(std::function<void()> task) {
    std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
    condition_.notify_one();
  }
  World& world() { return world_; }

 private:
  void loop() {
    for (;;) {
      std::function<void()> task;
      {
        std::unique_lock lock(mutex_);
        condition_.wait(lock, [this] { return !tasks_.empty(); });
        task = std::move(tasks_.front());
        tasks_.pop_front();
      }
      if (!task) return;
      while (world_.hangs) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      if (random_() % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random_() % 200));
      task();
    }
  }

  World& world_;
  std::minstd_rand random_;
  std::mutex mutex_;
  std::condition_variable condition_;
  std::deque<std::function<void()>> tasks_;
  std::thread thread_;
};

struct FakeGraph : BackendGraph {
  FakeGraph(World& world, std::vector<void*> data) : world(world), data(std::move(data)) { ++world.graphs; }
  int64_t launches() const override { return static_cast<int64_t>(data.size()); }
  ~FakeGraph() override {
    --world.graphs;
    alive = 0;
  }
  World& world;
  std::vector<void*> data;
  std::atomic<int> alive{1};
};

struct FakeBuffer : HostBuffer {
  explicit FakeBuffer(int64_t n) : bytes_(n) {}
  void* data() override { return bytes_.data(); }
  int64_t bytes() const override { return static_cast<int64_t>(bytes_.size()); }
  std::vector<char> bytes_;
};

/// The memory an operation of these tests works on.
void* target(const Op& op) { return std::get<FillRandomParams>(op).out.data; }

class FakeBackend : public Backend {
 public:
  explicit FakeBackend(World& world) : world_(world) {}
  ~FakeBackend() override {
    expect(world_.streams == 0 && world_.graphs == 0, "streams and graphs end before their backend");
    std::lock_guard lock(world_.mutex);
    expect(world_.live.empty(), "memory ends before its backend");
  }

  DeviceInfo info() const override { return {}; }
  Status allocate(int64_t bytes, void** out) override {
    std::lock_guard lock(world_.mutex);
    if (world_.live.size() >= 64) return Status::Error(Code::kOutOfDeviceMemory, "the fake device is full");
    world_.live.insert(*out = std::calloc(1, bytes));
    return Status::Ok();
  }
  void release(void* data) noexcept override {
    std::lock_guard lock(world_.mutex);
    expect(world_.live.erase(data) == 1, "memory is released once");
    std::free(data);
  }
  Status host_buffer(int64_t bytes, std::shared_ptr<HostBuffer>* out) override {
    *out = std::make_shared<FakeBuffer>(bytes);
    return Status::Ok();
  }
  Status create_stream(std::unique_ptr<BackendStream>* out) override {
    *out = std::make_unique<FakeStream>(world_, ++seed_);
    return Status::Ok();
  }
  int64_t workspace_bytes(const Op&) const override { return 0; }
  int64_t decode_plan_ints(int64_t, int64_t) const override { return 0; }

  Status run(const Op& op, View, BackendStream& stream) override {
    if (world_.lost) return Status::Error(Code::kDeviceLost, "the fake device is lost");
    if (++ran_ % 97 == 0) return Status::Error(Code::kBackend, "the fake device refuses");
    later(stream, [this, data = target(op)] { world_.touch(data); });
    return Status::Ok();
  }
  Status upload(void* dst, std::shared_ptr<HostBuffer> src, int64_t, BackendStream& stream) override {
    later(stream, [this, dst, src] { world_.touch(dst); });
    return Status::Ok();
  }
  Status download(std::shared_ptr<HostBuffer> dst, const void* src, int64_t, BackendStream& stream) override {
    later(stream, [this, dst, src] { world_.touch(const_cast<void*>(src)); });
    return Status::Ok();
  }
  Status read_file(int, int64_t, void*, int64_t, BackendStream&) override { return Status::Ok(); }
  Status compile(std::span<const Op> ops, View, BackendStream&, std::unique_ptr<BackendGraph>* out) override {
    std::vector<void*> data;
    for (const Op& op : ops) data.push_back(target(op));
    *out = std::make_unique<FakeGraph>(world_, std::move(data));
    return Status::Ok();
  }
  Status replay(BackendGraph& graph, BackendStream& stream) override {
    auto* fake = &static_cast<FakeGraph&>(graph);
    later(stream, [this, fake] {
      if (world_.lost) return;
      expect(fake->alive == 1, "a graph lives while it is replayed");
      for (void* data : fake->data) world_.touch(data);
    });
    return Status::Ok();
  }
  void fence(BackendStream& stream, std::function<void(Status)> done) override {
    later(stream, [this, done = std::move(done)] {
      done(world_.lost ? Status::Error(Code::kDeviceLost, "the fake device is lost") : Status::Ok());
    });
  }
  Status order_after(BackendStream& stream, BackendStream& other) override {
    auto passed = std::make_shared<std::atomic<bool>>(false);
    later(other, [passed] { *passed = true; });
    later(stream, [passed] {
      while (!*passed) std::this_thread::yield();
    });
    return Status::Ok();
  }

 private:
  void later(BackendStream& stream, std::function<void()> task) {
    static_cast<FakeStream&>(stream).push(std::move(task));
  }
  World& world_;
  uint32_t seed_ = 0;
  int ran_ = 0;
};

std::shared_ptr<Device> open(World& world) {
  std::shared_ptr<Device> device;
  const Status status = Device::open(
      [&world](std::unique_ptr<Backend>* backend) {
        *backend = std::make_unique<FakeBackend>(world);
        return Status::Ok();
      },
      std::make_shared<LostLatch>(), &device);
  expect(status.ok(), "the device opens");
  return device;
}

Op operation(const StorageRef& storage) {
  FillRandomParams params;
  params.out.data = storage->data();
  params.out.rank = 1;
  params.out.shape[0] = 16;
  return params;
}

/// Counts questions and answers: each question must get exactly one.
struct Ledger {
  std::atomic<int> asked{0};
  std::atomic<int> answered{0};
  std::function<void(Status)> question() {
    ++asked;
    return [this, once = std::make_shared<std::atomic<int>>(0)](Status) {
      expect(++*once == 1, "an answer comes once");
      ++answered;
    };
  }
};

StorageRef allocate(Device& device) {
  auto answer = std::make_shared<std::promise<StorageRef>>();
  auto future = answer->get_future();
  device.submit(
      std::make_unique<AllocateCommand>(64, [answer](Status, StorageRef s) { answer->set_value(std::move(s)); }));
  return future.get();
}

void wait_idle(Device& device, const StreamRef& stream) {
  auto answer = std::make_shared<std::promise<void>>();
  auto future = answer->get_future();
  device.submit(std::make_unique<RecordCommand>(stream, [answer](Status) { answer->set_value(); }));
  future.get();
}

enum class End { kNatural, kClose, kLost };

/// Random work, dropping handles as early as possible; then the device ends in one of three ways.
void stress(uint32_t seed, int actions, End end) {
  World world;
  Ledger ledger;
  std::minstd_rand random(seed);
  std::shared_ptr<Device> device = open(world);
  {
    std::vector<StreamRef> streams = {device->create_stream(), device->create_stream(), device->create_stream()};
    std::vector<StorageRef> tensors;
    std::vector<GraphRef> graphs;
    for (int i = 0; i < actions; ++i) {
      const StreamRef& stream = streams[random() % streams.size()];
      // Handles are short-lived, so most blocks are held by queued work alone.
      if (tensors.size() < 4) {
        StorageRef made = allocate(*device);
        if (made == nullptr) break;  // closed or lost
        tensors.push_back(std::move(made));
      }
      const StorageRef tensor = tensors[random() % tensors.size()];
      switch (random() % 10) {
        case 0: {
          std::vector<Op> ops = {operation(tensor), operation(tensor)};
          auto graph = std::make_shared<Graph>(device->resources(), std::vector<StorageRef>{tensor});
          device->submit(std::make_unique<CompileCommand>(stream, graph, std::move(ops), View{}));
          graphs.push_back(std::move(graph));
          break;
        }
        case 1:
          if (graphs.empty()) break;
          device->submit(std::make_unique<ReplayCommand>(stream, graphs.back()));
          if (random() % 2 == 0) graphs.pop_back();
          break;
        case 2: device->submit(std::make_unique<RecordCommand>(stream, ledger.question())); break;
        case 3:
          device->submit(std::make_unique<ReadCommand>(
              stream, tensor, tensor->data(), 64,
              [answer = ledger.question()](Status s, std::shared_ptr<HostBuffer>) { answer(std::move(s)); }));
          break;
        case 4: device->submit(std::make_unique<WaitCommand>(stream, streams[random() % streams.size()])); break;
        case 5: streams[random() % streams.size()] = device->create_stream(); break;
        case 6: {
          auto bytes = std::make_unique<std::byte[]>(64);
          device->submit(std::make_unique<WriteCommand>(stream, tensor, tensor->data(), std::move(bytes), 64));
          break;
        }
        default:
          device->submit(
              std::make_unique<OperationCommand>(stream, operation(tensor), View{}, std::vector<StorageRef>{tensor}));
      }
      if (random() % 3 == 0) tensors.erase(tensors.begin() + random() % tensors.size());
      if (end == End::kLost && i == actions / 2) world.lost = true;
      if (end == End::kClose && i == actions / 2) device->close(nullptr);
    }
    if (end == End::kNatural) {
      for (const StreamRef& stream : streams) wait_idle(*device, stream);
      tensors.clear();
      graphs.clear();
      expect(device->resources()->held_bytes() == 0, "nothing is held when nobody holds anything");
    }
    device->close(nullptr);
    // Handles outlive the device here, and end after it.
    device->join();
  }
  expect(ledger.asked == ledger.answered, "every question has its answer when the device has ended");
}

/// The device stops in the middle of its work and is given up: what has been asked is answered, the threads leave, and
/// when the work goes on after all, much later, nothing happens.
void hang() {
  // An abandoned device is kept for ever, and so is what it works with.
  World& world = *new World;
  Ledger& ledger = *new Ledger;
  const std::shared_ptr<Device>& device = *new std::shared_ptr<Device>(open(world));
  StreamRef stream = device->create_stream();
  StorageRef tensor = allocate(*device);
  wait_idle(*device, stream);
  const auto record = [&] { device->submit(std::make_unique<RecordCommand>(stream, ledger.question())); };
  world.hangs = true;
  for (int i = 0; i < 20; ++i) {
    device->submit(
        std::make_unique<OperationCommand>(stream, operation(tensor), View{}, std::vector<StorageRef>{tensor}));
    record();
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  expect(ledger.answered == 0, "a device that hangs answers nothing");

  const auto given_up = std::chrono::steady_clock::now();
  device->abandon(Status::Error(Code::kDeviceLost, "it hangs"));
  record();
  tensor.reset();
  stream.reset();
  device->close(nullptr);
  device->join();
  const auto took = std::chrono::steady_clock::now() - given_up;
  expect(took < std::chrono::seconds(1), "the end of an abandoned device waits for nothing");
  expect(ledger.asked == ledger.answered, "every question has its answer when a device has been given up");
  expect(device->state().code == Code::kDisposed, "it is closed");
  expect(world.live.size() == 1, "its memory stays: work may still touch it");

  world.hangs = false;
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  expect(ledger.asked == ledger.answered, "what ends late is not answered again");
}

/// Announcements wake whoever waits for a signal, but only raising it ends the wait; none of either is lost.
void announcements() {
  constexpr int kRounds = 400;
  Signal signal;
  std::atomic<int> returns{0};
  std::atomic<bool> stops{false};
  std::thread waits([&] {
    for (int i = 0; i < kRounds; ++i) {
      signal.wait();
      ++returns;
    }
  });
  std::thread announces([&] {
    std::minstd_rand random(1);
    while (!stops) {
      signal.announce();
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 500));
    }
  });
  std::minstd_rand random(2);
  for (int i = 0; i < kRounds; ++i) {
    // Long enough for the waiter to be asleep now and then, whatever it spins.
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 1000));
    expect(returns == i, "an announcement ends no wait");
    signal.raise();
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (returns == i && std::chrono::steady_clock::now() < until) std::this_thread::yield();
    expect(returns == i + 1, "a signal ends one wait, announced or not");
    if (returns != i + 1) std::_Exit(1);  // nobody would end the waits
  }
  stops = true;
  announces.join();
  waits.join();
}

}  // namespace

int main() {
  announcements();
  for (uint32_t seed = 1; seed <= 20; ++seed) stress(seed, 600, End::kNatural);
  for (uint32_t seed = 1; seed <= 60; ++seed) stress(seed, 20 + static_cast<int>(seed) * 5, End::kClose);
  for (uint32_t seed = 1; seed <= 30; ++seed) stress(seed, 200, End::kLost);
  hang();
  std::printf("%d checks, %d failures\n", g_checks.load(), g_failures.load());
  return g_failures == 0 ? 0 : 1;
}
