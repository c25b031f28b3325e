// Checkpoint folders for Python: saving (one rank's part, in the foreground or beside training), listing, checking, and
// reading of slices. Contracts in checkpoint/{save_job,tag_folder,verified_file}.h.
#include <ATen/Parallel.h>

#include "bindings/bindings.h"
#include "checkpoint/checkpoint_kind.h"
#include "checkpoint/save_job.h"
#include "checkpoint/torch_archive.h"
#include "checkpoint/verified_file.h"
#include "comm/communicator.h"
#include "platform/files.h"

namespace deepscale {
namespace {

using ReleaseGil = py::call_guard<py::gil_scoped_release>;

/// (name, shape, offset, numel, dtype, tensor or a function without arguments that returns it)
using SliceTuple = std::tuple<std::string, std::vector<int64_t>, int64_t, int64_t, py::object, py::object>;

/// What gives a tensor's bytes, for a tensor or a function without arguments that returns it. check: what they must be.
struct TensorBytes {
  std::function<std::shared_ptr<const void>()> data;
  bool in_memory = false;
};

TensorBytes tensor_bytes(py::object source, const std::function<void(const at::Tensor&)>& check) {
  const auto bytes_of = [check](const at::Tensor& tensor) {
    auto kept = std::make_shared<at::Tensor>(tensor.detach().to(at::kCPU).contiguous());
    check(*kept);
    const void* const data = kept->const_data_ptr();
    return std::shared_ptr<const void>(kept, data);
  };
  if (THPVariable_Check(source.ptr())) {
    const auto& tensor = THPVariable_Unpack(source.ptr());
    // By value: data() is called without the GIL, and the tensor lives as long as the slice.
    return {[tensor, bytes_of] { return bytes_of(tensor); }, tensor.is_cpu() && tensor.is_contiguous()};
  }
  auto call = std::shared_ptr<py::object>(new py::object(std::move(source)), [](py::object* function) {
    const py::gil_scoped_acquire gil;
    delete function;
  });
  return {[call, bytes_of] {
            const py::gil_scoped_acquire gil;
            return bytes_of((*call)().cast<at::Tensor>());
          },
          false};
}

SavedSlice slice_of(const SliceTuple& tuple) {
  SavedSlice slice;
  py::object dtype, source;
  std::tie(slice.name, slice.shape, slice.offset, slice.numel, dtype, source) = tuple;
  slice.dtype = to_dtype(torch::python::detail::py_object_to_dtype(dtype));
  const auto check = [name = slice.name, type = slice.dtype, numel = slice.numel](const at::Tensor& tensor) {
    TORCH_CHECK(tensor.numel() == numel && to_dtype(tensor.scalar_type()) == type, "slice of ", name, ": expected ",
                numel, " elements of ", std::string(name_of(type)), ", got ", tensor.numel(), " of ",
                tensor.scalar_type());
  };
  TensorBytes bytes = tensor_bytes(std::move(source), check);
  slice.data = std::move(bytes.data);
  slice.in_memory = bytes.in_memory;
  return slice;
}

/// A part of a storage: (bytes, tensor or a function without arguments that returns it)
BytePart part_of_storage(const py::handle& item) {
  auto [bytes, source] = item.cast<std::tuple<int64_t, py::object>>();
  TensorBytes found = tensor_bytes(std::move(source), [expected = bytes](const at::Tensor& tensor) {
    TORCH_CHECK(static_cast<int64_t>(tensor.nbytes()) == expected, "part of a storage: expected ", expected,
                " bytes, got ", tensor.nbytes());
  });
  return {bytes, std::move(found.data), found.in_memory};
}

/// (name, pickle, parts of each storage)
using ArchiveTuple = std::tuple<std::string, py::bytes, std::vector<py::list>>;

SavedArchive archive_of(const ArchiveTuple& tuple) {
  std::vector<std::vector<BytePart>> storages;
  for (const py::list& parts : std::get<2>(tuple)) {
    auto& storage = storages.emplace_back();
    for (const py::handle& part : parts) storage.push_back(part_of_storage(part));
  }
  return {std::get<0>(tuple), torch_file_members(std::get<1>(tuple), std::move(storages))};
}

std::shared_ptr<SaveJob> make_job(const py::dict& plan, const std::vector<SliceTuple>& tuples,
                                  const std::vector<ArchiveTuple>& archive_tuples, std::shared_ptr<KeptMemory> memory) {
  SavePlan made;
  made.memory = std::move(memory);
  made.save_dir = plan["save_dir"].cast<std::string>();
  made.tag = plan["tag"].cast<std::string>();
  made.layout = plan["layout"].cast<std::string>();
  made.rank = plan["rank"].cast<int>();
  made.tensor_file = plan["tensor_file"].cast<std::string>();
  made.threads = plan["threads"].cast<int>();
  made.commits = plan["commits"].cast<bool>();
  made.commit.ranks = plan["ranks"].cast<int>();
  made.commit.elsewhere = plan["elsewhere"].cast<std::vector<int>>();
  made.commit.info = plan["info"].cast<std::string>();
  made.commit.write_latest = plan["write_latest"].cast<bool>();
  made.commit.latest_dir = plan["latest_dir"].cast<std::string>();
  made.commit.latest_text = plan["latest_text"].cast<std::string>();
  made.commit.keep_last = plan["keep_last"].cast<int>();
  made.commit.patience = std::chrono::milliseconds(static_cast<int64_t>(1000 * plan["patience_s"].cast<double>()));
  std::vector<SavedSlice> slices;
  for (const SliceTuple& tuple : tuples) slices.push_back(slice_of(tuple));
  std::vector<SavedArchive> archives;
  for (const ArchiveTuple& tuple : archive_tuples) archives.push_back(archive_of(tuple));
  return std::make_shared<SaveJob>(std::move(made), std::move(slices), std::move(archives));
}

using RequestTuple = std::tuple<std::string, int64_t, at::Tensor>;

void read_slices(const CheckpointTensors& tensors, const std::vector<RequestTuple>& tuples) {
  std::vector<CheckpointTensors::Request> requests;
  for (const auto& [name, offset, destination] : tuples) {
    const ManifestTensor* found = tensors.find(name);
    TORCH_CHECK_VALUE(destination.is_cpu() && destination.is_contiguous(), "read ", name,
                      ": a contiguous CPU tensor is needed");
    TORCH_CHECK_VALUE(found == nullptr || found->dtype == to_dtype(destination.scalar_type()), "read ", name,
                      ": it is stored as ", found == nullptr ? "" : std::string(name_of(found->dtype)),
                      ", the destination is ", destination.scalar_type());
    requests.push_back({name, offset, destination.numel(), destination.data_ptr()});
  }
  const py::gil_scoped_release release;
  tensors.read(requests, at::get_num_threads());
}

void read_bytes(const CheckpointTensors& tensors, const std::vector<RequestTuple>& tuples) {
  std::vector<CheckpointTensors::FileRequest> requests;
  for (const auto& [file, begin, destination] : tuples) {
    TORCH_CHECK_VALUE(destination.is_cpu() && destination.is_contiguous(), "read ", file,
                      ": a contiguous CPU tensor is needed");
    requests.push_back({file, begin, static_cast<int64_t>(destination.nbytes()), destination.data_ptr()});
  }
  const py::gil_scoped_release release;
  tensors.read_files(requests, at::get_num_threads());
}

py::list tags_of(const std::string& save_dir) {
  std::vector<TagFacts> found;
  {
    const py::gil_scoped_release release;
    found = list_tags(save_dir);
  }
  py::list answer;
  for (const TagFacts& facts : found) {
    py::dict entry;
    entry["tag"] = facts.tag;
    entry["saved_at"] = facts.saved_at;
    entry["problem"] = facts.problem;
    entry["layout"] = facts.manifest.layout;
    entry["bytes"] = facts.manifest.bytes();
    entry["info"] = facts.manifest.info;
    answer.append(entry);
  }
  return answer;
}

}  // namespace

void register_checkpoint(py::module_& m) {
  py::class_<ShardImage, std::shared_ptr<ShardImage>>(m, "ShardImage")
      .def(py::init<>())
      .def_property_readonly("capacity", &ShardImage::capacity);
  py::class_<KeptMemory, std::shared_ptr<KeptMemory>>(m, "KeptMemory").def(py::init<>());
  py::class_<SaveJob, std::shared_ptr<SaveJob>>(m, "SaveJob")
      .def(py::init(&make_job), py::arg("plan"), py::arg("slices"), py::arg("archives"), py::arg("memory") = nullptr)
      .def("write_part", &SaveJob::write_part, ReleaseGil())
      .def("commit", &SaveJob::commit, ReleaseGil())
      .def("take_snapshot", &SaveJob::take_snapshot, py::arg("image"), py::arg("threads"), ReleaseGil())
      .def("start", &SaveJob::start)
      .def_property_readonly("done", &SaveJob::done)
      .def("wait_for_part", &SaveJob::wait_for_part, ReleaseGil())
      .def("cancel", &SaveJob::cancel, ReleaseGil())
      .def("wait", &SaveJob::wait, ReleaseGil());
  py::class_<CheckpointTensors, std::shared_ptr<CheckpointTensors>>(m, "CheckpointTensors")
      .def(py::init([](std::string folder) {
             return std::make_shared<CheckpointTensors>(std::move(folder), at::get_num_threads());
           }),
           py::arg("folder"), ReleaseGil())
      .def("names",
           [](const CheckpointTensors& self) {
             std::vector<std::string> names;
             for (const ManifestTensor& tensor : self.manifest().tensors) names.push_back(tensor.name);
             return names;
           })
      .def("find",
           [](const CheckpointTensors& self, const std::string& name) -> py::object {
             const ManifestTensor* tensor = self.find(name);
             if (tensor == nullptr) return py::none();
             return py::make_tuple(tensor->shape, to_scalar_type(tensor->dtype));
           })
      .def("read", &read_slices, py::arg("requests"))
      .def("read_files", &read_bytes, py::arg("requests"))
      .def("check_file", &CheckpointTensors::check_file, py::arg("name"), ReleaseGil())
      .def_property_readonly("layout", [](const CheckpointTensors& self) { return self.manifest().layout; })
      .def_property_readonly("info", [](const CheckpointTensors& self) { return self.manifest().info; });
  m.def("begin_save", &begin_save, py::arg("save_dir"), py::arg("tag"), ReleaseGil());
  m.def("read_part", &read_part, py::arg("folder"), py::arg("rank"), ReleaseGil());
  m.def("put_part", &put_part, py::arg("folder"), py::arg("rank"), py::arg("text"), ReleaseGil());
  m.def("restore_replaced", &restore_replaced, py::arg("save_dir"), ReleaseGil());
  m.def("abandon_save", &abandon_save, py::arg("save_dir"), py::arg("tag"), ReleaseGil());
  m.def(
      "checkpoint_kind", [](const std::string& path) { return name_of(checkpoint_kind(path)); }, py::arg("path"),
      ReleaseGil());
  m.def("saving_folder", &saving_folder, py::arg("save_dir"), py::arg("tag"));
  m.def("read_latest", &read_latest, py::arg("save_dir"), ReleaseGil());
  m.def("list_tags", &tags_of, py::arg("save_dir"));
  m.def("verify_tag", &verify_tag, py::arg("folder"), py::arg("deep"), py::arg("threads") = 1,
        py::arg("loads_next") = false, ReleaseGil());
}

}  // namespace deepscale
