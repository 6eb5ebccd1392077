/* See calibration.h. */
#include "engine/calibration.h"

#include <string.h>

static const struct {
    const char *query, *documents[QR_CALIBRATION_DOCUMENTS];
} texts[QR_CALIBRATION_QUERIES] = {
    {"How do I keep bread from going stale?",
     {("Store bread at room temperature in a paper bag or a bread box. In a refrigerator its starch crystallises faster and the loaf goes "
       "stale within a day; what will not be eaten in two days is best frozen in slices."),
      "Freezing keeps bread fresh for up to three months.",
      "Sourdough is made with a starter of wild yeast and lactic acid bacteria, which also makes it keep longer than other bread.",
      "The bakery on the corner opens at six in the morning and is closed on Mondays.",
      "Bread prices rose by four per cent last year, the statistical office reported.",
      "The committee will meet on Thursday to vote on the proposed changes to the parking regulations."}},
    {"python read large csv file without running out of memory",
     {("Pass chunksize to pandas.read_csv and process the file piece by piece:\n\n    for part in pd.read_csv(\"big.csv\", "
       "chunksize=100_000):\n"
       "        total += part[\"amount\"].sum()\n\nOnly one part is in memory at a time."),
      "The csv module of the standard library returns an iterator, so that a for loop over csv.reader(f) holds a single row at a time.",
      "MemoryError is raised when an operation runs out of memory but the situation may still be rescued by deleting some objects.",
      "def read(path):\n    with open(path) as f:\n        return f.read()",
      "CSV stands for comma-separated values. RFC 4180 describes the format.",
      "Pythons are non-venomous snakes found in Africa, Asia and Australia."}},
    {"symptoms of vitamin B12 deficiency",
     {("Lack of vitamin B12 causes tiredness, pale skin, pins and needles in hands and feet, a sore red tongue, and in time trouble with "
       "memory "
       "and balance."),
      "People who eat no animal products should take vitamin B12 as a supplement, since plants contain none that the body can use.",
      "Vitamin D deficiency may lead to bone pain and muscle weakness.",
      "Cobalamin was first isolated in 1948; its structure, solved by Dorothy Hodgkin, is the most complex of all vitamins.",
      "Adults need about 2.4 micrograms a day.", "Bus line 12 runs every ten minutes on weekdays."}},
    {"Wer hat die Relativitätstheorie aufgestellt?",
     {"Albert Einstein veröffentlichte 1905 die spezielle und 1915 die allgemeine Relativitätstheorie.",
      "Die Relativitätstheorie beschreibt Raum, Zeit und Gravitation; ihre Vorhersagen wurden 1919 bei einer Sonnenfinsternis bestätigt.",
      "Max Planck gilt als Begründer der Quantenphysik.", "Einstein wurde 1879 in Ulm geboren und spielte gern Geige.",
      "Für den Kartoffelsalat werden die Kartoffeln in der Schale gekocht und noch warm geschnitten.",
      "The theory of relativity was developed by Albert Einstein."}},
    {"北京有哪些著名的景点？",
     {"北京最著名的景点有故宫、天坛、颐和园和八达岭长城。", "故宫是明清两代的皇家宫殿，位于北京中轴线的中心，每年接待上千万游客。",
      "上海外滩的夜景吸引了许多游客。", "北京今天多云，最高气温二十五度。",
      "The Great Wall at Badaling is about seventy kilometres from the centre of Beijing.", "请把文件保存后重新启动程序。"}},
    {"What is the refund policy for cancelled flights?",
     {("If the airline cancels your flight, you may choose between a full refund within seven days and rebooking on the next available "
       "flight at "
       "no extra cost."),
      "Tickets of the economy light fare are not refundable when the passenger cancels; taxes are paid back on request.",
      "Flight 212 to Oslo has been cancelled because of heavy snow.", "Hand luggage may weigh up to eight kilograms.",
      "Refund requests for hotel bookings are answered within three working days.",
      "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen."}},
};

qr_status qr_calibration_make(qr_calibration *c, const qr_prompt *prompt, size_t max_length, qr_error *err)
{
    for (size_t q = 0; q < QR_CALIBRATION_QUERIES; q++) {
        qr_text documents[QR_CALIBRATION_DOCUMENTS];
        for (size_t d = 0; d < QR_CALIBRATION_DOCUMENTS; d++)
            documents[d] = (qr_text){texts[q].documents[d], strlen(texts[q].documents[d])};
        qr_query query = {
            .query = {texts[q].query, strlen(texts[q].query)}, .documents = documents, .n_documents = QR_CALIBRATION_DOCUMENTS};
        qr_status status = qr_prompt_build(prompt, &query, max_length, &c->ids[q], err);
        if (status != QR_OK) return status;
        const qr_prompt_ids *ids = &c->ids[q];
        c->prefixes[q] = (qr_prefix){ids->ids.id, ids->n_shared};
        for (size_t d = 0; d < QR_CALIBRATION_DOCUMENTS; d++)
            c->seqs[q * QR_CALIBRATION_DOCUMENTS + d] = (qr_seq){ids->ids.id + ids->start[d], ids->start[d + 1] - ids->start[d], q};
    }
    c->prompts = (qr_batch){c->prefixes, QR_CALIBRATION_QUERIES, c->seqs, QR_CALIBRATION_PROMPTS, NULL};
    return QR_OK;
}

void qr_calibration_deinit(qr_calibration *c)
{
    for (size_t q = 0; q < QR_CALIBRATION_QUERIES; q++) qr_prompt_ids_deinit(&c->ids[q]);
}

static qr_text text_of(const char *s) { return (qr_text){s, strlen(s)}; }

void qr_calibration_pair(size_t i, qr_text *query, qr_text *answer, qr_text *unrelated)
{
    *query = text_of(texts[i].query);
    *answer = text_of(texts[i].documents[0]);
    *unrelated = text_of(texts[i].documents[QR_CALIBRATION_DOCUMENTS - 1]);
}
