// What each health check measures, in plain words; the limits are those of lightning_slt.Thresholds.

export const CHECKS = {
  above_anchor: "How far the chains' mean loss lies above that of the trained weights, in standard errors. Below 2 fails: the "
    + "weights are no minimum yet, or there are too few draws.",
  drift: "Change within the last half of the chains, in standard errors. Above 4 fails: the burn-in is too short.",
  rhat: "Disagreement between chains; 1 is none. Above 1.3 fails: run longer, or raise localization.",
  heating: "Share of the value that the length of the steps and minibatch noise have added. Above 0.13 fails: lower the step size.",
  acceptance: "How often an exact correction would accept a step. Below 0.8 the step is long.",
  spikes: "Largest jump over the mean size of jumps. Above 40 fails: the step size is too large.",
  finite: "Chains that diverged. Any fails: lower the step size.",
  snr: "Rise of the loss over its jitter. Below 3, more chains or larger minibatches help.",
  drift_to_noise: "The gradient's pull over the noise of a step. Above 1 the step is long, or nbeta large.",
  below_anchor: "Share of draws whose loss is below that of the trained weights. Above ½ fails: the weights are no minimum.",
  prior_bound: "Distance of the chains over that of localization alone. Above 1.1 the loss falls away from the weights.",
  step_size: "Step size times the largest curvature. Above 1.5 fails; chains diverge at 4.",
  steps: "Steps made over steps that the curvature asks for. Below 0.1 fails.",
  n_eff: "Independent draws that the covariances are worth. Below 200 single entries are mostly noise.",
  between_chains: "Share of the variation that lies between chains rather than within them. Above 0.1 calls for a look.",
  reliability: "How much of the pattern would come out again in another run. Below ½ the larger part is noise.",
};

export const VALUES = {
  anchor_loss: "Loss at the trained weights, in nats.",
  autocorrelation_time: "Draws until the loss has forgotten where it was.",
  ess_bulk: "Independent draws that all chains together are worth.",
  curvature: "Largest curvature of the loss at the trained weights.",
  resolution: "Directions of less curvature than this do not count towards the value.",
  distance: "How far the chains went from the trained weights.",
  heating_stderr: "Standard error of heating.",
};
