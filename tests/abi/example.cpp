// The library from C++17: the header is used as it is, an engine is owned by a unique_ptr.
#include <cstdio>
#include <memory>
#include <qwen_rerank.h>
#include <string_view>
#include <vector>

int main(int argc, char **argv)
{
    if (argc != 2) return 2;
    qr_options options{};
    options.model = argv[1];
    qr_engine *raw = nullptr;
    qr_error err{};
    if (qr_engine_open(&raw, &options, &err) != QR_OK) {
        std::fprintf(stderr, "%s\n", err.msg);
        return 1;
    }
    std::unique_ptr<qr_engine, decltype(&qr_engine_close)> engine(raw, qr_engine_close);

    const std::string_view texts[] = {"The capital of China is Beijing.", "Gravity attracts two bodies towards each other."};
    std::vector<qr_text> documents;
    for (auto text : texts) documents.push_back({text.data(), text.size()});
    const std::string_view question = "What is the capital of China?";
    qr_query query{};
    query.query = {question.data(), question.size()};
    query.documents = documents.data();
    query.n_documents = documents.size();
    std::vector<qr_result> results(documents.size());
    if (qr_score(engine.get(), &query, 1, results.data(), nullptr, &err) != QR_OK) {
        std::fprintf(stderr, "%s\n", err.msg);
        return 1;
    }
    for (size_t i = 0; i < results.size(); i++) std::printf("%.6f  %s\n", results[i].score, texts[i].data());
    return 0;
}
