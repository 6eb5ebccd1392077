/* How far apart the scores of two models are, on texts that everybody has. */
#include "base/mem.h"
#include "cli/engine.h"
#include "cli/export.h"

#include <math.h>
#include <string.h>

enum { PER_QUERY = 4 };

/* One that answers, one near it, one with the same words, one about something else. */
static const struct {
    const char *query, *documents[PER_QUERY];
} samples[] = {
    {"What is the capital of China?",
     {"The capital of China is Beijing.", "Shanghai is the largest city of China by population.",
      "China is a brand of dinnerware; the capital letters on it are gilded.",
      "Gravity is a force that attracts two bodies towards each other. It gives weight to physical objects."}},
    {"how to list open files of a process",
     {"lsof -p PID lists the files that a process has open; /proc/PID/fd has links to them.",
      "ls -l lists the files of a folder with their size and owner.", "The process of opening a file at the court takes a day.",
      "Knead the dough for ten minutes and let it rise for an hour."}},
    {"symptoms of vitamin D deficiency",
     {"Too little vitamin D causes bone pain, muscle weakness and, in children, rickets.",
      "Vitamin C is found in oranges, peppers and sauerkraut.", "The D string of the guitar shows symptoms of wear.",
      "The train to Lyon leaves at 7:40 from platform 3."}},
    {"mirror two disks in Linux",
     {"mdadm --create /dev/md0 --level=1 --raid-devices=2 /dev/sda1 /dev/sdb1 makes a RAID 1 of two disks.",
      "fdisk shows and changes the partition table of a disk.", "Hang a mirror above two round disks of polished brass.",
      "Penguins live almost exclusively in the southern hemisphere."}},
    {"who wrote The Old Man and the Sea",
     {"Ernest Hemingway wrote The Old Man and the Sea in Cuba in 1951.", "Moby-Dick, a novel about a whale, is by Herman Melville.",
      "The old man wrote a letter beside the sea.", "Interest rates rose by a quarter of a point."}},
    {"Wie hoch ist die Zugspitze?",
     {"Die Zugspitze ist mit 2962 m der höchste Berg Deutschlands.", "Der Montblanc ist der höchste Berg der Alpen.",
      "Der Zug hat eine Spitze von 300 km/h.", "北京是中国的首都。"}},
};
enum { N_QUERIES = sizeof samples / sizeof samples[0], N = N_QUERIES * PER_QUERY };

static int score_all(const cli_args *args, const char *model, qr_result results[N])
{
    qr_text texts[N];
    qr_query queries[N_QUERIES];
    qr_error err = {0};
    qr_engine *engine = NULL;
    for (size_t i = 0; i < N_QUERIES; i++) {
        for (size_t k = 0; k < PER_QUERY; k++)
            texts[i * PER_QUERY + k] = (qr_text){samples[i].documents[k], strlen(samples[i].documents[k])};
        queries[i] =
            (qr_query){.query = {samples[i].query, strlen(samples[i].query)}, .documents = texts + i * PER_QUERY, .n_documents = PER_QUERY};
    }
    qr_options options = {.model = model, .backend = "cpu", .dtype = QR_DTYPE_F32, .threads = (int) args->threads};
    qr_status status = qr_engine_open(&engine, &options, &err);
    int code = status != QR_OK ? cli_exit_of_open(status) : CLI_OK;
    if (status == QR_OK) {
        qr_call call = {.cancel = cli_cancel_begin()};
        status = qr_score(engine, queries, N_QUERIES, results, &call, &err);
        cli_cancel_end();
        code = cli_exit_of_score(status);
    }
    if (status != QR_OK) cli_error(args, "%s: %s", model, err.msg);
    qr_engine_close(engine);
    return code;
}

int cli_drift_measure(const cli_args *args, const char *a, const char *b, cli_drift *drift)
{
    qr_result x[N] = {{0}}, y[N] = {{0}};
    *drift = (cli_drift){.n = N};
    int code = score_all(args, a, x);
    if (code == CLI_OK) code = score_all(args, b, y);
    if (code != CLI_OK) return code;
    double agreed = 0;
    for (size_t i = 0; i < N; i++) {
        double score = fabs(x[i].score - y[i].score), margin = fabs((double) x[i].margin - (double) y[i].margin);
        drift->score_max = fmax(drift->score_max, score);
        drift->margin_max = fmax(drift->margin_max, margin);
        drift->score_mean += score / N;
        drift->margin_mean += margin / N;
        for (size_t j = i / PER_QUERY * PER_QUERY; j < i; j++) {
            float p = x[i].margin - x[j].margin, q = y[i].margin - y[j].margin;
            agreed += (double) ((p > 0) - (p < 0)) * (double) ((q > 0) - (q < 0)) + (p == 0 && q == 0);
            drift->n_orders++;
        }
    }
    drift->tau = agreed / (double) drift->n_orders;
    return CLI_OK;
}
