// PyTorch's variable-length flash attention for processors, which has none of its own: the plainest form of what FlashAttention 2 computes, so
// that the code which calls it can be tested without a GPU. Preloaded into the program by test_flash.py.
//
// QR_FLASH_MASK=top: a causal mask aligned at the top left, as FlashAttention before 2.1 had it.
#include <ATen/ATen.h>
#include <ATen/core/stack.h>
#include <cstdlib>
#include <string>
#include <torch/library.h>

namespace
{

using at::Tensor;

// Boxed, since the number of arguments is not the same in all versions: 15 in 2.10, 17 in 2.13.
void forward(const c10::OperatorHandle &op, torch::jit::Stack *stack)
{
    std::vector<c10::IValue> args = torch::jit::pop(*stack, op.schema().arguments().size());
    Tensor q = args[0].toTensor(), k = args[1].toTensor(), v = args[2].toTensor();
    auto cum_q = args[3].toOptional<Tensor>(), cum_k = args[4].toOptional<Tensor>();
    int64_t max_q = args[5].toInt(), max_k = args[6].toInt();
    auto scale = args[10].toOptional<double>();
    TORCH_CHECK(cum_q && cum_k && scale && args[7].toDouble() == 0 && args[8].toBool() && !args[9].toBool(), "unexpected arguments");
    for (size_t i = 11; i < args.size(); i++) TORCH_CHECK(args[i].isNone(), "unexpected arguments");
    TORCH_CHECK(cum_q->scalar_type() == at::kInt && cum_k->scalar_type() == at::kInt && cum_q->sizes() == cum_k->sizes(), "unexpected lengths");
    TORCH_CHECK(q.dim() == 3 && k.dim() == 3 && k.sizes() == v.sizes() && q.stride(-1) == 1 && k.stride(-1) == 1, "unexpected shapes");
    const char *mask = getenv("QR_FLASH_MASK");
    bool top = mask != nullptr && std::string(mask) == "top";
    int64_t repeats = q.size(1) / k.size(1), n = cum_q->size(0) - 1, longest_q = 0, longest_k = 0;
    const int *begin_q = cum_q->const_data_ptr<int>(), *begin_k = cum_k->const_data_ptr<int>();
    TORCH_CHECK(begin_q[0] == 0 && begin_k[0] == 0 && begin_q[n] == q.size(0) && begin_k[n] == k.size(0), "the lengths do not add up");
    Tensor out = at::empty_like(q);
    for (int64_t i = 0; i < n; i++) {
        int64_t queries = begin_q[i + 1] - begin_q[i], keys = begin_k[i + 1] - begin_k[i];
        longest_q = std::max(longest_q, queries);
        longest_k = std::max(longest_k, keys);
        auto part = [](const Tensor &x, int64_t begin, int64_t size) { return x.narrow(0, begin, size).transpose(0, 1).to(at::kFloat); };
        Tensor own_q = part(q, begin_q[i], queries), own_k = part(k, begin_k[i], keys).repeat_interleave(repeats, 0);
        Tensor own_v = part(v, begin_k[i], keys).repeat_interleave(repeats, 0);
        Tensor seen = at::ones({queries, keys}, at::kBool).tril(top ? 0 : keys - queries);
        Tensor weights = at::matmul(own_q, own_k.transpose(1, 2)).mul(*scale).masked_fill(seen.logical_not(), -INFINITY).softmax(-1);
        out.narrow(0, begin_q[i], queries).copy_(at::matmul(weights.to(q.scalar_type()).to(at::kFloat), own_v).transpose(0, 1));
    }
    TORCH_CHECK(longest_q == max_q && longest_k == max_k, "the longest are ", longest_q, " and ", longest_k, ", not ", max_q, " and ", max_k);
    torch::jit::push(*stack, out, at::empty({q.size(1), q.size(0)}), at::empty({2}), Tensor(), Tensor());
}

} // namespace

TORCH_LIBRARY_IMPL(aten, CPU, m) { m.impl("_flash_attention_forward", torch::CppFunction::makeFromBoxedFunction<&forward>()); }
