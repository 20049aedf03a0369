"""The same work by sb3-contrib's MaskablePPO: same networks, data, mini-batches, inner epochs and learning rates."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.distributions import MaskableCategoricalDistribution
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.vec_env.base_vec_env import VecEnv

from dualppo.bench.env import Env
from dualppo.policies.policy import Critic, make_policy
from dualppo.methods.ppo import PPOConfig


class ArrayEnv(VecEnv):
    """All states at once: one environment a state, one step an episode (the bandit reading, γ = 0)."""

    def __init__(self, env: Env, weights: torch.Tensor):
        self.env = env
        self.reward = (env.reward @ weights).numpy()
        self.allowed = env.allowed.numpy()
        self.states = np.arange(len(env), dtype=np.float32)[:, None]
        super().__init__(len(env), spaces.Box(0, len(env), (1,), np.float32), spaces.Discrete(env.cand.shape[1]))

    def reset(self) -> np.ndarray:
        return self.states

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict]]:
        reward = self.reward[np.arange(self.num_envs), self.actions].astype(np.float32)
        return self.states, reward, np.ones(self.num_envs, bool), self.infos

    @property
    def infos(self) -> list[dict]:
        return [{} for _ in range(self.num_envs)]

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> np.ndarray:
        assert method_name == "action_masks"
        return self.allowed

    def has_attr(self, attr_name: str) -> bool:
        return attr_name == "action_masks"

    def get_attr(self, attr_name: str, indices: Any = None) -> list:
        return [None] * self.num_envs  # nothing but the masks is asked for

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise AttributeError(attr_name)

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs

    def close(self) -> None:
        pass


class CandidatePolicy(MaskableActorCriticPolicy):
    """Our own two networks behind the interface of stable-baselines3."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Any,
        env: Env,
        config: PPOConfig,
        **kwargs: Any,
    ):
        self.env, self.config = env, config
        super().__init__(observation_space, action_space, lr_schedule, net_arch=[])

    def _build(self, lr_schedule: Any) -> None:
        self.actor = make_policy(
            "two_tower",
            self.env.x.shape[1],
            self.env.pool.shape[1],
            hidden=self.config.hidden,
            kappa=self.config.kappa,
            mask="off",
        )
        self.critic = Critic(self.env.x.shape[1], 1, self.config.hidden)
        self.action_dist = MaskableCategoricalDistribution(self.action_space.n)
        self.optimizer = torch.optim.Adam(
            [
                {"params": self.actor.parameters(), "lr": self.config.policy_lr},
                {"params": self.critic.parameters(), "lr": self.config.value_lr},
            ]
        )

    def distribution(self, states: torch.Tensor, action_masks: np.ndarray | None) -> MaskableCategoricalDistribution:
        one = self.action_dist.proba_distribution(self.actor(self.env, states))
        if action_masks is not None:
            one.apply_masking(action_masks)
        return one

    def forward(
        self, obs: torch.Tensor, deterministic: bool = False, action_masks: np.ndarray | None = None
    ) -> tuple[torch.Tensor, ...]:
        states = obs[:, 0].long()
        one = self.distribution(states, action_masks)
        actions = one.get_actions(deterministic=deterministic)
        return actions, self.critic(self.env.x[states]), one.log_prob(actions)

    def evaluate_actions(
        self, obs: torch.Tensor, actions: torch.Tensor, action_masks: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        states = obs[:, 0].long()
        one = self.distribution(states, action_masks)
        return self.critic(self.env.x[states]), one.log_prob(actions), one.entropy()

    def predict_values(self, obs: torch.Tensor) -> torch.Tensor:
        return self.critic(self.env.x[obs[:, 0].long()])


class TwoRates(MaskablePPO):
    """Keeps the learning rates of the two networks; the library would give both the same."""

    def _update_learning_rate(self, optimizers: Any) -> None:
        pass


def maskable_ppo(env: Env, config: PPOConfig, seed: int) -> TwoRates:
    """MaskablePPO on all states of `env`, a rollout of one step per state."""
    return TwoRates(
        CandidatePolicy,
        ArrayEnv(env, torch.tensor(config.weights)),
        n_steps=1,
        batch_size=config.minibatch,
        n_epochs=config.inner_epochs,
        gamma=0.0,
        gae_lambda=config.lam,
        clip_range=config.clip,
        vf_coef=1.0,
        ent_coef=0.0,
        max_grad_norm=float("inf"),
        seed=seed,
        device="cpu",
        policy_kwargs={"env": env, "config": config},
    )
