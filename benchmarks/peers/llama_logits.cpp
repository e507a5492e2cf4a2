// Logits of a GGUF model: llama-logits MODEL IDS THREADS CHUNK OUT
//
// IDS holds int32 token ids; OUT receives float32 [tokens, vocabulary], one row per id. The ids are
// evaluated from an empty context in calls of CHUNK tokens (1: token by token), with an fp32 cache.
// A sixth argument "exact" leaves flash attention off, which would cast that cache to fp16.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "llama.h"

static void fail(const char * what) {
    std::fprintf(stderr, "llama-logits: %s\n", what);
    std::exit(1);
}

static std::vector<llama_token> read_ids(const char * path) {
    std::ifstream file(path, std::ios::binary);
    std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
    const auto * first = reinterpret_cast<const llama_token *>(bytes.data());
    return {first, first + bytes.size() / sizeof(llama_token)};
}

int main(int argc, char ** argv) {
    if (argc != 6 && argc != 7) fail("usage: llama-logits MODEL IDS THREADS CHUNK OUT [exact]");
    const bool exact = argc == 7 && std::string(argv[6]) == "exact";
    const auto ids = read_ids(argv[2]);
    const int threads = std::atoi(argv[3]), chunk = std::atoi(argv[4]);
    if (ids.empty() || threads < 1 || chunk < 1) fail("no ids, or no threads, or no chunk");

    llama_backend_init();
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) fail("the model cannot be loaded");
    auto params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>(ids.size() + 256);
    params.n_batch = params.n_ubatch = static_cast<uint32_t>(chunk);
    params.n_threads = params.n_threads_batch = threads;
    params.type_k = params.type_v = GGML_TYPE_F32;
    if (exact) params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    llama_context * context = llama_init_from_model(model, params);
    if (!context) fail("no context can be made");

    const int width = llama_vocab_n_tokens(llama_model_get_vocab(model));
    std::ofstream out(argv[5], std::ios::binary);
    for (size_t start = 0; start < ids.size(); start += chunk) {
        const int count = static_cast<int>(std::min<size_t>(chunk, ids.size() - start));
        llama_batch batch = llama_batch_init(count, 0, 1);
        batch.n_tokens = count;
        for (int i = 0; i < count; i++) {
            batch.token[i] = ids[start + i];
            batch.pos[i] = static_cast<llama_pos>(start + i);
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = 1;
        }
        if (llama_decode(context, batch) != 0) fail("llama_decode refused the tokens");
        for (int i = 0; i < count; i++) {
            const float * row = llama_get_logits_ith(context, i);
            out.write(reinterpret_cast<const char *>(row), sizeof(float) * width);
        }
        llama_batch_free(batch);
    }
    llama_free(context);
    llama_model_free(model);
    return out ? 0 : 1;
}
