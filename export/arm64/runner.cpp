// Runs one method of a .pte on raw tensors, with the ExecuTorch runtime that the Python wheel carries in its _portable_lib.
//
//   runner FILE METHOD TIMES OUTPUT INPUT...
//
// Inputs are read from, and the first output is written to, files of little-endian numbers. Prints the bytes of planned memory.
// Between executions it calls getpgid(MARK), by which counter.c separates them.
#include <executorch/runtime/core/data_loader.h>
#include <executorch/runtime/core/hierarchical_allocator.h>
#include <executorch/runtime/core/memory_allocator.h>
#include <executorch/runtime/executor/memory_manager.h>
#include <executorch/runtime/executor/method.h>
#include <executorch/runtime/executor/program.h>
#include <executorch/runtime/platform/runtime.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>  // initialises the streams where the library's own start-up symbol is a stub
#include <memory>
#include <string>
#include <vector>

namespace et = executorch::runtime;
namespace tensors = executorch::runtime::etensor;

namespace {

constexpr long MARK = 0x70616d;
constexpr size_t ALIGNMENT = 64;

[[noreturn]] void stop(const std::string& what) {
  std::cerr << "runner: " << what << std::endl;
  std::exit(1);
}

void must(et::Error error, const std::string& what) {
  if (error != et::Error::Ok) stop(what + " failed with error " + std::to_string(static_cast<int>(error)));
}

template <typename T>
T must(et::Result<T>&& result, const std::string& what) {
  must(result.error(), what);
  return std::move(result.get());
}

// Memory that is aligned and lives as long as its owner.
class Blocks {
 public:
  ~Blocks() { clear(); }

  uint8_t* take(size_t bytes, size_t alignment = ALIGNMENT) {
    void* block = nullptr;
    if (posix_memalign(&block, std::max(alignment, ALIGNMENT), std::max(bytes, size_t{1}))) return nullptr;
    blocks_.push_back(block);
    return static_cast<uint8_t*>(block);
  }

  void clear() {
    for (void* block : blocks_) std::free(block);
    blocks_.clear();
  }

 private:
  std::vector<void*> blocks_;
};

// An allocator without a limit.
class Heap final : public et::MemoryAllocator {
 public:
  Heap() : MemoryAllocator(0, nullptr) {}
  void* allocate(size_t bytes, size_t alignment = kDefaultAlignment) override { return blocks_.take(bytes, alignment); }
  void reset() override { blocks_.clear(); }

 private:
  Blocks blocks_;
};

// A whole file in memory, from which the runtime takes views.
class File final : public et::DataLoader {
 public:
  explicit File(const std::string& path) {
    std::ifstream stream(path, std::ios::binary | std::ios::ate);
    if (!stream) stop("cannot read " + path);
    bytes_ = static_cast<size_t>(stream.tellg());
    data_ = blocks_.take(bytes_);
    if (!data_) stop("no memory for " + path);
    stream.seekg(0);
    stream.read(reinterpret_cast<char*>(data_), static_cast<std::streamsize>(bytes_));
    if (!stream) stop("cannot read " + path);
  }

  uint8_t* data() { return data_; }
  size_t bytes() const { return bytes_; }

  et::Result<et::FreeableBuffer> load(size_t offset, size_t size, const SegmentInfo&) const override {
    if (offset > bytes_ || size > bytes_ - offset) return et::Error::InvalidArgument;
    return et::FreeableBuffer(data_ + offset, size, nullptr);
  }

  et::Error load_into(size_t offset, size_t size, const SegmentInfo&, void* target) const override {
    if (offset > bytes_ || size > bytes_ - offset) return et::Error::InvalidArgument;
    std::memcpy(target, data_ + offset, size);
    return et::Error::Ok;
  }

  et::Result<size_t> size() const override { return bytes_; }

 private:
  Blocks blocks_;
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
};

// A tensor over a file's content, with the shape that the method wants.
class Input {
 public:
  Input(const std::string& path, const et::TensorInfo& wanted) : file_(path) {
    if (file_.bytes() != wanted.nbytes())
      stop(path + " has " + std::to_string(file_.bytes()) + " bytes, the method takes " + std::to_string(wanted.nbytes()));
    sizes_.assign(wanted.sizes().begin(), wanted.sizes().end());
    order_.assign(wanted.dim_order().begin(), wanted.dim_order().end());
    strides_.resize(sizes_.size());
    int32_t stride = 1;
    for (auto dimension = order_.rbegin(); dimension != order_.rend(); ++dimension) {
      strides_[*dimension] = stride;
      stride *= sizes_[*dimension];
    }
    implementation_ = std::make_unique<tensors::TensorImpl>(
        wanted.scalar_type(), sizes_.size(), sizes_.data(), file_.data(), order_.data(), strides_.data());
  }

  et::EValue value() { return et::EValue(tensors::Tensor(implementation_.get())); }

 private:
  File file_;
  std::vector<int32_t> sizes_, strides_;
  std::vector<uint8_t> order_;
  std::unique_ptr<tensors::TensorImpl> implementation_;
};

}  // namespace

int main(int count, char** words) {
  if (count < 6) stop("usage: runner FILE METHOD TIMES OUTPUT INPUT...");
  const std::string name = words[2];
  const int times = std::atoi(words[3]);
  et::runtime_init();

  File file(words[1]);
  et::Program program = must(et::Program::load(&file, et::Program::Verification::InternalConsistency), "loading the file");
  et::MethodMeta meta = must(program.method_meta(name.c_str()), "finding method " + name);

  Blocks arena;
  std::vector<et::Span<uint8_t>> planned;
  size_t planned_bytes = 0;
  for (size_t i = 0; i < meta.num_memory_planned_buffers(); i++) {
    const auto bytes = static_cast<size_t>(must(meta.memory_planned_buffer_size(i), "reading the memory plan"));
    planned.push_back({arena.take(bytes), bytes});
    planned_bytes += bytes;
  }
  et::HierarchicalAllocator planned_memory({planned.data(), planned.size()});
  Heap method_memory, temporary_memory;
  et::MemoryManager memory(&method_memory, &planned_memory, &temporary_memory);
  et::Method method = must(program.load_method(name.c_str(), &memory), "loading method " + name);

  if (meta.num_inputs() != static_cast<size_t>(count - 5))
    stop("method " + name + " takes " + std::to_string(meta.num_inputs()) + " inputs");
  std::vector<std::unique_ptr<Input>> inputs;
  for (size_t i = 0; i < meta.num_inputs(); i++)
    inputs.push_back(std::make_unique<Input>(words[5 + i], must(meta.input_tensor_meta(i), "reading the inputs")));

  for (int run = 0; run < times; run++) {
    for (size_t i = 0; i < inputs.size(); i++) must(method.set_input(inputs[i]->value(), i), "setting an input");
    must(method.execute(), "executing " + name);
    syscall(SYS_getpgid, MARK);
  }

  const auto output = method.get_output(0).toTensor();
  std::ofstream stream(words[4], std::ios::binary);
  stream.write(static_cast<const char*>(output.const_data_ptr()), static_cast<std::streamsize>(output.nbytes()));
  if (!stream.flush()) stop(std::string("cannot write ") + words[4]);
  std::cout << "{\"planned_bytes\": " << planned_bytes << "}" << std::endl;
}
