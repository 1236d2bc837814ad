# SPDX-License-Identifier: MIT
# Plots of `tiny_lm demo`: reads settings.dat and loss_by_position.dat in output_dir, writes three SVG files beside them.
#   gnuplot -e "output_dir='build/demo'" scripts/plots/demo.gp
if (!exists("output_dir")) output_dir = "build/demo"
settings = output_dir . "/settings.dat"
positions = output_dir . "/loss_by_position.dat"

set terminal svg size 760,480 font "sans-serif,13" background "white"
set grid
set key off
set offsets graph 0.06, graph 0.2, graph 0.08, graph 0.08

# settings.dat: name bits loss kl top1 late_loss late_kl late_top1; the exact cache is the first line.
exact_loss = real(system(sprintf("awk '!/^#/ {print $3; exit}' '%s'", settings)))
set xlabel "bits per element of K and V, everything included"
set logscale x 2

set output output_dir . "/demo_loss_by_bits.svg"
set title "Loss of tiny_lm with each cache (small model: not a production result)" noenhanced
set ylabel "loss, nats per token"
plot exact_loss with lines dashtype 2 linecolor "gray40", \
     settings using 2:3 with points pointtype 7 linecolor "#1f5fa8", \
     settings using 2:3:1 with labels noenhanced offset 0.6,0.6 left font ",11"

set output output_dir . "/demo_kl_by_bits.svg"
set title "Distance from the exact cache's next-token distributions"
set ylabel "KL(exact || cache), nats per token"
set logscale y
set format y "10^{%L}"
plot settings using ($4 > 0 ? $2 : NaN):4 with points pointtype 7 linecolor "#1f5fa8", \
     settings using ($4 > 0 ? $2 : NaN):4:1 with labels noenhanced offset 0.6,0.6 left font ",11"

# loss_by_position.dat: last target of a block of 64, then one column of mean losses per cache, the exact one first.
set output output_dir . "/demo_loss_by_position.svg"
unset logscale
set format y "%g"
set offsets 0, 0, graph 0.05, graph 0.05
set title "What each cache adds to the loss along the text (means over 64 tokens)"
set xlabel "position of the predicted token"
set xrange [0:*] noextend
set ylabel "loss minus the exact cache's, nats per token"
set key top left noenhanced autotitle columnhead
stats positions skip 1 nooutput
if (STATS_columns > 2) {
  plot for [i = 3:STATS_columns] positions using 1:(column(i) - column(2)) with lines linewidth 1.5 \
       title columnheader(i)
} else {
  plot positions using 1:2 with lines linewidth 1.5 title columnheader(2)
}
